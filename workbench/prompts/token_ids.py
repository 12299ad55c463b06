"""Prompts that are token ids already: lists, arrays, tensors, and what a tokenizer or a tokenized data set holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.errors import UserError

IDS, MASK = "input_ids", "attention_mask"


def are_ids(item: Any) -> bool:
    """Whether ``item`` is one row of whole numbers: a list, a tuple, an array or a tensor with one dimension."""
    return bool(_whole_numbers(item))


def ids_of(item: Any, where: str, mask: Any = None) -> tuple[int, ...]:
    """The token ids of a row, without those that ``mask`` (1 for a real token) calls padding.

    Raises :class:`UserError`, beginning with ``where``, for what is no list of whole numbers from 0 on.
    """
    ids = _whole_numbers(item)
    if ids is None:
        raise UserError(f"{where}: {IDS!r} must be a list of token ids, whole numbers from 0 on.")
    if mask is not None:
        real = _plain(mask)
        fits = isinstance(real, list | tuple) and len(real) == len(ids)
        if not fits or any(isinstance(mark, str) or mark not in (0, 1) for mark in real):
            raise UserError(f"{where}: {MASK!r} must have a 0 or 1 for each of the {len(ids)} token ids.")
        ids = [token for token, is_real in zip(ids, real, strict=True) if is_real]
    if not ids:
        raise UserError(f"{where} has no token ids; remove the row.")
    if min(ids) < 0:
        raise UserError(f"{where} has the token id {min(ids)}; token ids are whole numbers from 0 on.")
    return tuple(ids)


def rows_of_batch(source: Any) -> list[Any] | None:
    """The rows of a tokenizer's own output, of an :class:`~workbench.prompts.encode.Encoded` batch, or of a dict of
    columns (answers and all), one entry for each row of ids; None for anything else."""
    if not isinstance(source, Mapping) and hasattr(source, IDS) and hasattr(source, MASK):
        source = {IDS: source.input_ids, MASK: source.attention_mask}
    if not isinstance(source, Mapping) or IDS not in source:
        return None
    ids = _plain(source[IDS])
    if not isinstance(ids, list | tuple) or not ids or not all(isinstance(_plain(row), list | tuple) for row in ids):
        return None
    # A tokenizer adds offsets, lengths and the like, which say nothing about the row.
    batch = source if isinstance(source, dict) else {name: source[name] for name in (IDS, MASK) if name in source}
    columns = {name: _plain(column) for name, column in batch.items() if column is not None}
    for name, column in columns.items():
        if not isinstance(column, list | tuple) or len(column) != len(ids):
            rows = f"{len(column)} rows" if isinstance(column, list | tuple) else "no rows"
            raise UserError(f"{name!r} has {rows} and {IDS!r} has {len(ids)}; give one entry for each row.")
    return [{name: column[row] for name, column in columns.items()} for row in range(len(ids))]


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, np.generic) else value


def _whole_numbers(item: Any) -> list[int] | tuple[int, ...] | None:
    """The numbers of a row that holds whole numbers only (true and false are none); None for anything else."""
    row = _plain(item)
    if not isinstance(row, list | tuple):
        return None
    kinds = set(map(type, row))
    if kinds <= {int}:
        return row
    return [int(token) for token in row] if all(issubclass(kind, np.integer) for kind in kinds - {int}) else None
