"""Needle trials: a sentence hidden in a long text, and a question that only it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import UserError
from workbench.prompts.encode import render
from workbench.prompts.row import Prompt
from workbench.prompts.templates import as_read

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
    return [[list(trial.ids), trial.start, trial.end, trial.group] for trial in trials]


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

    ``template`` is what stands behind the haystack, with {question} where the question goes. Haystack and question are
    one user turn where the tokenizer has a chat template, and plain text with ``chat=False``.

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
    read = as_read(Prompt(prompt=prompt, chat=chat), tokenizer)
    rendered = render(read, tokenizer)
    first = rendered.find(needle.text)
    if first < 0:
        raise UserError(f"The chat template rewrites the needle {needle.text!r}: give needle_trials(chat=False).")
    tokens = _tokens(tokenizer, rendered, special=read.messages is None)
    last = first + len(needle.text)
    inside = [index for index, (_, start, end) in enumerate(tokens) if start < last and end > first and end > start]
    return Trial(tuple(token for token, _, _ in tokens), inside[0], inside[-1] + 1, number)


def _tokens(tokenizer: Any, text: str, *, special: bool) -> list[tuple[int, int, int]]:
    """Each token's id and where it begins and ends in the text, in characters; never two beginnings of text."""
    _check_fast(tokenizer)
    made = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    tokens = [(index, *place) for index, place in zip(made["input_ids"], made["offset_mapping"], strict=True)]
    doubled = tokenizer.bos_token_id is not None and [token[0] for token in tokens[:2]] == [tokenizer.bos_token_id] * 2
    return tokens[1:] if doubled else tokens


def _offsets(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Where each token of ``text`` begins and ends, in characters."""
    _check_fast(tokenizer)
    return [(int(start), int(end)) for start, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


def _check_fast(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            "Needles are located by character offsets, which need a fast tokenizer: give trials as token ids."
        )
