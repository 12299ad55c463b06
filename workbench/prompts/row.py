"""One prompt: plain text or chat messages, and what is known about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.jsonable import jsonable

Message = Mapping[str, Any]
"""One turn of a chat: ``role`` and ``content``, and whatever else the model's chat template reads."""

Label = str | int | float | bool
"""What a row is an example of: a class, or a number to predict."""

FIELDS = ("prompt", "messages", "answer", "distractor", "label", "group", "contrast")


@dataclass(frozen=True)
class Prompt:
    """One row. Exactly one of ``prompt`` and ``messages`` is given."""

    prompt: str | None = None
    """Plain text, read by the model as it is."""

    messages: tuple[Message, ...] | None = None
    """Chat turns, put through the tokenizer's chat template once."""

    answer: str | None = None
    """The right continuation."""

    distractor: str | None = None
    """The continuation the answer is compared with."""

    label: Label | None = None
    group: str | None = None
    """Rows of one group are drawn together when an interval is bootstrapped."""

    contrast: str | tuple[Message, ...] | None = None
    """The counterpart (corrupted prompt, opposite persona), of the same kind as the prompt."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """Every other column, kept as found."""

    @property
    def is_chat(self) -> bool:
        return self.messages is not None

    @property
    def counterpart(self) -> Prompt | None:
        """The contrast as a row of its own, answer and distractor exchanged; None where there is none."""
        if self.contrast is None:
            return None
        is_text = isinstance(self.contrast, str)
        return Prompt(
            prompt=self.contrast if isinstance(self.contrast, str) else None,
            messages=None if is_text or isinstance(self.contrast, str) else self.contrast,
            answer=self.distractor,
            distractor=self.answer,
            label=self.label,
            group=self.group,
            columns=self.columns,
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields that are given, then the extra columns, as plain JSON values."""
        given = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None}
        return jsonable({**given, **self.columns})

    def __str__(self) -> str:
        if self.prompt is not None:
            return self.prompt
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages or ())


def row_from(item: Any, where: str) -> Prompt:
    """The row that ``item`` describes: text, chat messages, a mapping of columns, or a :class:`Prompt`.

    ``where`` ("line 3", "row 7") starts the sentence of the :class:`UserError` raised for anything else.
    """
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        return _checked(Prompt(prompt=item), where)
    if isinstance(item, Mapping):
        return _from_mapping(item, where)
    if isinstance(item, Sequence) and item and all(is_message(turn) for turn in item):
        return _checked(Prompt(messages=_messages(item, where)), where)
    raise UserError(
        f"{where} is {type(item).__name__}; expected text, a list of chat messages with role and content, "
        "or an object with 'prompt' or 'messages'."
    )


def is_message(item: Any) -> bool:
    """Whether ``item`` is one chat turn rather than a row of columns."""
    return isinstance(item, Mapping) and {"role", "content"} <= set(item) and not {"prompt", "messages"} & set(item)


def _from_mapping(item: Mapping[Any, Any], where: str) -> Prompt:
    columns = {
        str(name): plain for name, value in item.items() if (plain := _plain(value, str(name), where)) is not None
    }
    text, turns = columns.pop("prompt", None), columns.pop("messages", None)
    if text is None and turns is None:
        names = ", ".join(repr(str(name)) for name in item) or "none"
        raise UserError(
            f"{where} has neither 'prompt' nor 'messages' (its columns: {names}); "
            "rename the column that holds the text, as in rename={'question': 'prompt'}."
        )
    if text is not None and turns is not None:
        raise UserError(f"{where} has both 'prompt' and 'messages'; give one of them.")
    label, contrast = columns.pop("label", None), columns.pop("contrast", None)
    if not isinstance(label, Label | None):
        raise UserError(f"{where}: 'label' is {type(label).__name__}; expected text, a number, or true/false.")
    row = Prompt(
        prompt=_text(text, "prompt", where),
        messages=None if turns is None else _messages(turns, where),
        answer=_text(columns.pop("answer", None), "answer", where),
        distractor=_text(columns.pop("distractor", None), "distractor", where),
        label=label,
        group=_text(columns.pop("group", None), "group", where),
        contrast=contrast if contrast is None or isinstance(contrast, str) else _messages(contrast, where),
        columns=columns,
    )
    return _checked(row, where)


def _checked(row: Prompt, where: str) -> Prompt:
    if row.prompt == "":
        raise UserError(f"{where} is an empty prompt; remove the row or give it text.")
    if row.contrast is not None and isinstance(row.contrast, str) == row.is_chat:
        kind = "a list of messages" if row.is_chat else "text"
        raise UserError(f"{where}: 'contrast' must be {kind}, like the prompt it belongs to.")
    return row


def _messages(turns: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise UserError(f"{where}: 'messages' must be a list of turns, each with 'role' and 'content'.")
    for number, turn in enumerate(turns):
        if not is_message(turn) or not isinstance(turn["role"], str):
            raise UserError(f"{where}: message {number} needs a 'role' (text) and a 'content'.")
    return tuple({str(key): value for key, value in turn.items()} for turn in turns)


def _text(value: Any, name: str, where: str) -> str | None:
    """Text as it is; whole numbers as their digits, because answers such as 42 are often stored so."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: {name!r} is {type(value).__name__} ({value!r}); write it as text.")


def _plain(value: Any, name: str, where: str) -> Any:
    """``value`` without numpy or pandas types; None for a missing one."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    try:
        return jsonable(value)
    except TypeError as error:
        raise UserError(
            f"{where}: column {name!r} holds {type(value).__name__}; expected text, numbers or lists; "
            "drop the column first."
        ) from error
