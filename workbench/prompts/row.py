"""One prompt: plain text, chat messages or token ids, and what is known about it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.jsonable import jsonable
from workbench.prompts.likeness import likeness
from workbench.prompts.token_ids import IDS, MASK, are_ids, ids_of
from workbench.strict_json import text_or_refuse

Message = Mapping[str, Any]
"""One turn of a chat: ``role`` and ``content``, and whatever else the model's chat template reads."""

Label = str | int | float | bool
"""What a row is an example of: a class, or a number to predict."""

KINDS = {"prompt": "text", "messages": "a list of messages", IDS: "a list of token ids"}
"""The fields that hold what the model reads, and what each of them is."""
FIELDS = (*KINDS, "chat", "answer", "distractor", "label", "group", "contrast")


@dataclass(frozen=True)
class Prompt:
    """One row. Exactly one of ``prompt``, ``messages`` and ``input_ids`` is given."""

    prompt: str | None = None
    """Plain text: a user turn where the tokenizer has a chat template, else read as it is."""

    messages: tuple[Message, ...] | None = None
    """Chat turns, put through the tokenizer's chat template once."""

    input_ids: tuple[int, ...] | None = None
    """Token ids, given to the model as they are: nothing is added, not even a BOS."""

    chat: bool | None = None
    """Whether a plain text is a user turn: False, never; None, where the tokenizer has a chat template."""

    answer: str | None = None
    """The right continuation."""

    distractor: str | None = None
    """The continuation the answer is compared with."""

    label: Label | None = None
    group: str | None = None
    """Rows of one group are drawn together when an interval is bootstrapped."""

    contrast: str | tuple[Message, ...] | tuple[int, ...] | None = None
    """The counterpart (corrupted prompt, opposite persona), of the same kind as the prompt."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """Every other column, kept as found."""

    @property
    def is_chat(self) -> bool:
        return self.messages is not None

    @property
    def kind(self) -> str:
        """The field that is given: "prompt", "messages" or "input_ids"."""
        return "messages" if self.messages is not None else "prompt" if self.input_ids is None else IDS

    @property
    def counterpart(self) -> Prompt | None:
        """The contrast as a row of its own, answer and distractor exchanged; None where there is none."""
        if self.contrast is None:
            return None
        return Prompt(
            **{self.kind: self.contrast},  # type: ignore[arg-type]
            chat=self.chat,
            answer=self.distractor,
            distractor=self.answer,
            label=self.label,
            group=self.group,
            columns=self.columns,
        )

    @property
    def said(self) -> str:
        """Text that is the same for two rows where the model reads the same, case, spaces and punctuation aside."""
        if self.prompt is not None:
            return likeness(self.prompt) if self.chat is None else json.dumps([likeness(self.prompt), self.chat])
        if self.messages is None:
            return json.dumps([self.kind, self.input_ids])
        turns = [
            {name: likeness(value) if isinstance(value, str) else value for name, value in turn.items()}
            for turn in self.messages
        ]
        return json.dumps([self.kind, turns], default=str)

    @property
    def shown(self) -> str:
        """The row in short, for people: its text, or what the user says last in a chat."""
        turns = [turn for turn in self.messages or () if turn["role"] == "user"] or list(self.messages or ())
        return _content(turns[-1]["content"]) if turns else str(self)

    def turned(self, chat: bool | None = None, system: str | None = None) -> Prompt:
        """The row with ``chat`` where it is a text that does not say it, and behind a ``system`` turn of a chat."""
        if self.input_ids is not None:
            return self
        if system is None:
            return self if self.prompt is None or self.chat is not None else replace(self, chat=chat)
        own = ({"role": "user", "content": self.prompt},) if self.messages is None else self.messages
        if own[0]["role"] == "system" or self.chat is False:
            return self
        contrast = None if self.counterpart is None else self.counterpart.turned(chat, system).messages
        return replace(self, prompt=None, chat=None, messages=_behind(system, own), contrast=contrast)

    def as_dict(self) -> dict[str, Any]:
        """The fields that are given, then the extra columns, as plain JSON values."""
        fields = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None}
        ids = {} if self.input_ids is None else {IDS: list(fields.pop(IDS))}  # long, and plain already
        return {**ids, **jsonable({**fields, **self.columns})}

    def __str__(self) -> str:
        if self.prompt is not None:
            return self.prompt
        if self.input_ids is not None:
            return f"token ids {' '.join(map(str, self.input_ids))}"
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages or ())


def _behind(system: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    return ({"role": "system", "content": system}, *turns)


def _content(content: Any) -> str:
    """A turn's text; of a list of parts, those that are text."""
    if not isinstance(content, list | tuple):
        return str(content)
    parts = (
        part.get("text", f"<{part.get('type', 'part')}>") if isinstance(part, Mapping) else part for part in content
    )
    return " ".join(map(str, parts))


def row_from(item: Any, where: str) -> Prompt:
    """The row that ``item`` describes: text, chat messages, token ids, a mapping of columns, or a :class:`Prompt`.

    ``where`` ("line 3", "row 7") starts the sentence of the :class:`UserError` raised for anything else.
    """
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        return _checked(Prompt(prompt=str(item)), where)
    if isinstance(item, Mapping):
        return _from_mapping(item, where)
    if isinstance(item, Sequence) and item and all(is_message(turn) for turn in item):
        return _checked(Prompt(messages=_messages(item, where)), where)
    if are_ids(item):
        return Prompt(input_ids=ids_of(item, where))
    if _is_empty(item):
        raise UserError(f"{where} is empty; remove the row.")
    raise UserError(
        f"{where} is {type(item).__name__}; expected text, a list of chat messages with role and content, "
        "a list of token ids, or an object with 'prompt', 'messages' or 'input_ids'."
    )


def _is_empty(item: Any) -> bool:
    """Whether ``item`` is a row without entries: an empty list, array or tensor."""
    return getattr(item, "shape", None) == (0,) or (isinstance(item, list | tuple) and not item)


def is_message(item: Any) -> bool:
    """Whether ``item`` is one chat turn rather than a row of columns."""
    return isinstance(item, Mapping) and {"role", "content"} <= set(item) and not KINDS.keys() & set(item)


def _from_mapping(item: Mapping[Any, Any], where: str) -> Prompt:
    given_ids = (IDS, MASK) if item.get(IDS) is not None else ()  # long, and read as they are
    columns = {
        str(name): plain
        for name, value in item.items()
        if (plain := value if name in given_ids else _plain(value, str(name), where)) is not None
    }
    kinds = [name for name in KINDS if name in columns]
    if not kinds:
        names = ", ".join(repr(str(name)) for name in item) or "none"
        raise UserError(
            f"{where} has none of 'prompt', 'messages' and 'input_ids' (its columns: {names}); "
            "rename the column that holds the text, as in rename={'question': 'prompt'}."
        )
    if len(kinds) > 1:
        raise UserError(f"{where} has both {kinds[0]!r} and {kinds[1]!r}; give one of them.")
    kind = kinds[0]
    what = _read(columns.pop(kind), kind, where, columns.pop(MASK, None) if kind == IDS else None)
    label, contrast = columns.pop("label", None), columns.pop("contrast", None)
    chat = columns.pop("chat") if kind == "prompt" and isinstance(columns.get("chat"), bool) else None
    if not isinstance(label, Label | None):
        raise UserError(f"{where}: 'label' is {type(label).__name__}; expected text, a number, or true/false.")
    row = Prompt(
        **{kind: what},
        chat=chat,
        answer=_text(columns.pop("answer", None), "answer", where),
        distractor=_text(columns.pop("distractor", None), "distractor", where),
        label=label,
        group=_text(columns.pop("group", None), "group", where),
        contrast=None if contrast is None else _contrast(contrast, kind, where),
        columns=columns,
    )
    return _checked(row, where)


def _checked(row: Prompt, where: str) -> Prompt:
    if row.prompt == "":
        raise UserError(f"{where} is an empty prompt; remove the row or give it text.")
    if row.prompt is not None:
        text_or_refuse(row.prompt, where)
    return row


def _read(value: Any, kind: str, where: str, mask: Any = None) -> Any:
    """What a row gives the model, checked."""
    if kind == IDS:
        return ids_of(value, where, mask)
    return _messages(value, where) if kind == "messages" else _text(value, "prompt", where)


def _contrast(value: Any, kind: str, where: str) -> Any:
    field_name = IDS if are_ids(value) else "prompt" if isinstance(value, str) else "messages"
    if field_name != kind:
        raise UserError(f"{where}: 'contrast' must be {KINDS[kind]}, like the prompt it belongs to.")
    return _read(value, kind, f"{where}, 'contrast'")


def _messages(turns: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise UserError(f"{where}: 'messages' must be a list of turns, each with 'role' and 'content'.")
    for number, turn in enumerate(turns):
        if not is_message(turn) or not isinstance(turn["role"], str):
            raise UserError(f"{where}: message {number} needs a 'role' (text) and a 'content'.")
        content = turn["content"]
        if isinstance(content, str):
            text_or_refuse(content, f"{where}, message {number}")
        elif not isinstance(content, list | tuple) and not (content is None and turn.get("tool_calls")):
            raise UserError(
                f"{where}: the content of message {number} is {type(content).__name__} ({content!r}), which a chat "
                "template would write out as if it were text; write it as text."
            )
    return tuple({str(key): value for key, value in turn.items()} for turn in turns)


def _text(value: Any, name: str, where: str) -> str | None:
    """Text as it is; whole numbers as their digits, because answers such as 42 are often stored so."""
    if value is None:
        return None
    if isinstance(value, str):
        return text_or_refuse(value, f"{where}, {name!r}")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: {name!r} is {type(value).__name__} ({value!r}); write it as text.")


def _plain(value: Any, name: str, where: str) -> Any:
    """``value`` without numpy or pandas types; None for a missing one."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise UserError(f"{where}: {name!r} is infinite, which no file can hold; write a number, or leave it empty.")
    try:
        return jsonable(value)
    except RecursionError as error:
        raise UserError(f"{where}: column {name!r} is nested too deeply; drop the column first.") from error
    except TypeError as error:
        raise UserError(
            f"{where}: column {name!r} holds {type(value).__name__}; expected text, numbers or lists; "
            "drop the column first."
        ) from error
