"""Where in each prompt something stands, in tokens: a text, characters from here to there, or a turn of a chat role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import render
from workbench.prompts.prompt_rows import rows_of
from workbench.prompts.row import Prompt
from workbench.prompts.templates import as_read

ROLE = "role:"
"""``role:user`` is the last turn of that role."""


def row_spans(rows: Prompts, tokenizer: Any, where: str) -> list[tuple[int, int]]:
    """The half-open span of tokens, row by row.

    Args:
        rows: The prompts.
        tokenizer: A fast tokenizer.
        where: ``role:user`` (system, assistant): the content of the last turn of that role; or a column that holds a
            text (its last occurrence in the prompt), or two numbers (characters of the prompt's text, half-open).

    Raises:
        UserError: A row lacks it, or it does not stand in the prompt.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("Spans are found by character offsets, which need a fast tokenizer.")
    return [_span(row, number, tokenizer, where) for number, row in enumerate(rows)]


def token_span(row: Prompt, start: int, stop: int, tokenizer: Any) -> tuple[int, int]:
    """The tokens that touch the characters ``start`` to ``stop`` of the prompt as the model reads it, the placeholders
    of trained prompt rows counted."""
    read = as_read(row, tokenizer)
    whole = render(read, tokenizer)
    encoded = tokenizer(whole, return_offsets_mapping=True, add_special_tokens=read.kind == "prompt")
    offsets = list(zip(_numbers(encoded["input_ids"], tokenizer), encoded["offset_mapping"], strict=True))
    inside = [number for number, (first, last) in offsets if first < stop and last > start and last > first]
    if not inside:
        raise UserError(f"Characters {start} to {stop} of {row.shown!r} hold no token: give a span inside the prompt.")
    return inside[0], inside[-1] + 1


def _numbers(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Which token of what the model reads each token of a text is: a second BOS is left out, placeholders stand in
    front."""
    bos, rows = tokenizer.bos_token_id, rows_of(tokenizer)
    leading = next((number for number, token in enumerate(ids) if token != bos), len(ids))
    left_out, begins = max(0, leading - 1), min(1, leading)
    before = 0 if rows is None or rows.behind else rows.count
    return [number - left_out + (before if number - left_out >= begins else 0) for number in range(len(ids))]


def _span(row: Prompt, number: int, tokenizer: Any, where: str) -> tuple[int, int]:
    whole = render(as_read(row, tokenizer), tokenizer)
    if where.startswith(ROLE):
        text = _turn(row, where.removeprefix(ROLE), number)
    else:
        named = row.columns.get(where)
        if isinstance(named, list | tuple) and len(named) == 2 and all(isinstance(end, int) for end in named):
            offset = whole.find(row.shown)
            return token_span(row, max(offset, 0) + named[0], max(offset, 0) + named[1], tokenizer)
        if not isinstance(named, str) or not named:
            raise UserError(
                f"Prompt {number} does not say {where!r}: give a text that stands in the prompt, or two numbers, "
                "characters from and to."
            )
        text = named
    start = whole.rfind(text)
    if start < 0:
        raise UserError(f"Prompt {number} does not hold {text!r}: write it as it stands there.")
    return token_span(row, start, start + len(text), tokenizer)


def _turn(row: Prompt, role: str, number: int) -> str:
    turns: list[Mapping[str, Any]] = list(row.messages or ())
    if row.messages is None and row.prompt is not None and role == "user":
        return row.prompt
    said = [str(turn["content"]) for turn in turns if turn["role"] == role]
    if not said or not said[-1]:
        raise UserError(f"Prompt {number} has no turn of {role!r}: give messages with one, or name a column.")
    return said[-1]
