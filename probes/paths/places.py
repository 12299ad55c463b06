"""Where in each prompt: one place for all rows, or one the rows name themselves in a column."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.engine.sites import parse_label
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

Place = int | str
"""A position (-1: the last prompt token; from 0: counted from the front), ``"last"``, or the name of a column of the
prompts that holds such a number for each row."""
Head = tuple[int, int]
"""(layer, head)"""
CONTRAST = "contrast_"
"""Prefix of a column that holds the place in the contrast, where that differs from the prompt's."""


def offsets_of(place: Place, prompts: Prompts, lengths: Sequence[int], *, of_contrast: bool = False) -> list[int]:
    """For each row how far from the end ``place`` is (-1: the last token).

    Raises :class:`UserError` for a column that is absent or holds no whole number, and for a place outside a prompt.
    """
    numbers = [_number(place, row, number, of_contrast) for number, row in enumerate(prompts)]
    offsets = []
    for row, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
        back = number - length if number >= 0 else number
        if not -length <= back < 0:
            raise UserError(f"Prompt {row}: position {number} is outside its {length} tokens; -1 is the last one.")
        offsets.append(back)
    return offsets


def _number(place: Place, row: object, number: int, of_contrast: bool) -> int:
    if isinstance(place, int):
        return place
    if place == "last":
        return -1
    columns = getattr(row, "columns", {})
    value = columns.get(f"{CONTRAST}{place}", columns.get(place)) if of_contrast else columns.get(place)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(
            f"Prompt {number}: the position {place!r} is neither a number, 'last', nor a column that holds a whole "
            f"number; the columns are {', '.join(map(repr, columns)) or 'none'}."
        )
    return value


def head_of(label: str, model: AdaptedModel) -> Head:
    """``L3H5`` as (3, 5). Raises :class:`UserError` for another label or a head the model lacks."""
    layer, kind, head = parse_label(label)
    if kind != "head" or head is None:
        raise UserError(f"{label!r} is not a head: write labels such as L3H5.")
    if not (layer < model.n_layers and head < model.n_heads):
        raise UserError(f"{label} does not exist: the model has {model.n_layers} layers of {model.n_heads} heads.")
    return layer, head


def label_of(head: Head) -> str:
    """``(3, 5)`` as ``L3H5``."""
    return f"L{head[0]}H{head[1]}"
