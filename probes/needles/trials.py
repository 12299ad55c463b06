"""Needle trials: a sentence hidden in a long text, and a question that only it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import UserError

QUESTION = "\nBased on the content of the text, Question: {question}\nAnswer:"
"""What stands behind the haystack by default."""
_ASKED = "{question}"
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


@dataclass(frozen=True)
class Needle:
    """What is hidden and asked for."""

    question: str
    text: str


@dataclass(frozen=True)
class Trial:
    """Token ids of a prompt in which ``ids[start:end]`` is the needle; trials of one needle share a ``group``."""

    ids: tuple[int, ...]
    start: int
    end: int
    group: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end < len(self.ids):
            raise UserError(
                f"The needle at {self.start}:{self.end} does not lie inside a prompt of {len(self.ids)} tokens: give "
                "the half-open span of its tokens."
            )


def contents(trials: Sequence[Trial]) -> list[list[Any]]:
    """Everything that tells trials apart, to be hashed: tokens, where the needle is, and its group."""
    return [[list(one.ids), one.start, one.end, one.group] for one in trials]


def needle_trials(
    haystack: str,
    needles: Sequence[Needle],
    tokenizer: Any,
    *,
    lengths: Sequence[int] = (256, 512, 1024),
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    template: str = QUESTION,
    chat: bool | None = None,
) -> list[Trial]:
    """One trial per needle, length (tokens of haystack) and depth (0 = beginning, 1 = end).

    ``chat``: whether the whole is a user turn of the tokenizer's chat template; None: where it has one (a chat model
    given raw text ends it at once). The answer is then the assistant's turn.

    ``template`` is what stands behind the haystack, with {question} where the question goes.

    A needle goes behind the sentence end nearest to its depth. Its tokens are found by the tokenizer's offsets, so the
    span is exact. Raises :class:`UserError` when the haystack is too short or holds a needle already, a needle is
    empty, or the template has no place for the question.
    """
    check_template(template)
    offsets = _offsets(tokenizer, haystack)
    trials = []
    for number, needle in enumerate(needles):
        if not needle.text.strip():
            raise UserError(f"Needle {number} is empty: give the sentence that is to be hidden.")
        if needle.text in haystack:
            raise UserError(f"The haystack already holds the needle {needle.text!r}: choose another text.")
        for length in lengths:
            if not 1 <= length <= len(offsets):
                raise UserError(
                    f"The haystack has {len(offsets)} tokens, but a trial asks for {length}: "
                    + ("give more text." if length > 0 else "ask for 1 or more.")
                )
            cut = haystack[: offsets[length - 1][1]]
            trials += [_trial(cut, needle, depth, number, tokenizer, template, chat) for depth in depths]
    return trials


def _as_turn(prompt: str, tokenizer: Any, chat: bool | None) -> tuple[str, bool]:
    """The prompt as a model of chats reads it, and whether it holds its special tokens already."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise UserError("chat=True needs a chat template, and this tokenizer has none: leave chat out.")
    if chat is False or not has_template:
        return prompt, False
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)), True


def check_template(template: str) -> None:
    """Raises :class:`UserError` when there is no place for the question in ``template``."""
    if _ASKED not in template:
        raise UserError(f"The template {template!r} has no place for the question: write {_ASKED} where it goes.")


def _trial(
    text: str, needle: Needle, depth: float, number: int, tokenizer: Any, template: str, chat: bool | None
) -> Trial:
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
    place = min(ends, key=lambda end: abs(end - depth * len(text)))
    before = text[:place].rstrip() + (" " if place else "")
    prompt = f"{before}{needle.text} {text[place:].lstrip()}" + template.replace(_ASKED, needle.question)
    whole, complete = _as_turn(prompt, tokenizer, chat)
    start = whole.find(f"{before}{needle.text}")
    if start < 0:
        raise UserError("The chat template changes the text that holds the needle: give chat=False.")
    ids = tokenizer(whole, add_special_tokens=not complete)["input_ids"]
    first = start + len(before)
    last = first + len(needle.text)
    inside = [
        index
        for index, (start, end) in enumerate(_offsets(tokenizer, whole, complete))
        if start < last and end > first and end > start
    ]
    return Trial(tuple(ids), inside[0], inside[-1] + 1, number)


def _offsets(tokenizer: Any, text: str, complete: bool = False) -> list[tuple[int, int]]:
    """Where each token of ``text`` begins and ends, in characters."""
    if not tokenizer.is_fast:
        raise UserError(
            "Needles are located by character offsets, which need a fast tokenizer: give trials as token ids."
        )
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not complete)
    return [(int(start), int(end)) for start, end in found["offset_mapping"]]
