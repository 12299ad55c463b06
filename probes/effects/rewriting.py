"""The same question in another form: rows with other text, with demonstrations, or with a second turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.row import Prompt


def text_of(row: Prompt) -> str:
    """What the user says: the prompt's text, or the last user turn."""
    if row.input_ids is not None:
        raise UserError("A row of token ids has no text to put in another form: give prompts as text or messages.")
    return row.shown


def retexted(row: Prompt, text: str) -> Prompt:
    """The row with ``text`` for what the user says; everything else stays."""
    text_of(row)
    if row.messages is None:
        return dataclasses.replace(row, prompt=text, contrast=None)
    last = max(number for number, turn in enumerate(row.messages) if turn["role"] == "user")
    turns = tuple({**turn, "content": text} if number == last else turn for number, turn in enumerate(row.messages))
    return dataclasses.replace(row, messages=turns, contrast=None)


def joined(text: str, answer: str) -> str:
    """Text and answer with one space between them where neither has any."""
    apart = text[-1:].isspace() or answer[:1].isspace() or not text
    return f"{text}{'' if apart else ' '}{answer}"


def with_demonstrations(
    rows: Prompts, pool: Prompts, shots: int, seed: int, *, answers: Sequence[str] | None = None
) -> Prompts:
    """Every row behind ``shots`` answered rows of ``pool`` that are of no group with it, drawn by the seed.

    Demonstrations are turns of a chat for rows of messages, else text with a blank line between. ``answers`` replaces
    the pool's own, as random labels do.

    Raises:
        UserError: A demonstration has no answer, or there are too few others.
    """
    if shots < 1:
        return rows
    answers_shown: list[str | None] = [row.answer for row in pool] if answers is None else list(answers)
    if None in answers_shown:
        raise UserError(f"Row {answers_shown.index(None)} of the demonstrations has no answer; every one needs it.")
    random = np.random.default_rng(seed)
    keys = _keys(pool)
    rewritten_rows = []
    for row, key in zip(rows, _keys(rows), strict=True):
        others = [number for number, other in enumerate(keys) if other != key]
        if len(others) < shots:
            raise UserError(f"{shots} demonstrations were asked for and {len(others)} other rows are there: give more.")
        choice = random.choice(others, shots, replace=False)
        rewritten_rows.append(
            _behind(row, [(text_of(pool[int(number)]), str(answers_shown[number])) for number in choice])
        )
    return Prompts(rewritten_rows)


def _keys(rows: Prompts) -> list[Any]:
    """What may not stand before itself: the group, or what is said."""
    return [row.group if row.group is not None else row.said for row in rows]


def _behind(row: Prompt, shown: Sequence[tuple[str, str]]) -> Prompt:
    if row.messages is None:
        before = "".join(f"{joined(text, answer)}\n\n" for text, answer in shown)
        return retexted(row, before + text_of(row))
    first = 1 if row.messages[0]["role"] == "system" else 0
    turns = [
        {"role": role, "content": content}
        for text, answer in shown
        for role, content in (("user", text), ("assistant", answer.strip()))
    ]
    return dataclasses.replace(
        row, messages=(*row.messages[:first], *turns, *row.messages[first:]), contrast=None
    )  # fmt: skip


def next_turn(row: Prompt, reply: str, text: str) -> Prompt:
    """The row after the model said ``reply`` and the user says ``text``."""
    text_of(row)
    if row.messages is None:
        return dataclasses.replace(row, prompt=f"{joined(row.prompt or '', reply)}\n{text}\n", contrast=None)
    more = ({"role": "assistant", "content": reply}, {"role": "user", "content": text})
    return dataclasses.replace(row, messages=(*row.messages, *more), contrast=None)


def as_chat(rows: Prompts, tokenizer: Any) -> Prompts:
    """Texts as user turns where the tokenizer has a chat template, so that turns can be added."""
    if not getattr(tokenizer, "chat_template", None):
        return rows
    return Prompts([
        dataclasses.replace(row, prompt=None, chat=None, contrast=None,
                            messages=({"role": "user", "content": row.prompt},))
        if row.prompt is not None and row.chat is not False else row
        for row in rows
    ])  # fmt: skip


def column_of(rows: Prompts, name: str, *, what: str = "") -> list[Any]:
    """The column ``name`` of every row: label, group, answer, or any other.

    Raises:
        UserError: A row lacks it.
    """
    own = ("label", "group", "answer", "distractor")
    values = [getattr(row, name) if name in own else row.columns.get(name) for row in rows]
    if None in values:
        missing = values.index(None)
        raise UserError(
            f"Row {missing} has no {name!r}{f', {what}' if what else ''} ({values.count(None)} of {len(values)} lack "
            "it): give every row one, or name another column."
        )
    return values
