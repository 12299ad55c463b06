"""Which columns of a table a terminal has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len

_GAP = 3
_PROSE = 40
"""A longer cell of several words is a text, which can be read in folds; numbers and names cannot."""


def left_out(columns: Mapping[str, Sequence[str]], width: int) -> list[str] | None:
    """The columns (name -> its header and cells) for which ``width`` signs have no room; the first that fit stay.

    None for a table with texts, whose columns are folded instead.
    """
    if any(cell_len(cell) > _PROSE and " " in cell for cells in columns.values() for cell in cells):
        return None
    room = width - 1
    without: list[str] = []
    for place, (name, cells) in enumerate(columns.items()):
        needed = max(map(cell_len, cells)) + _GAP
        if needed > room and place > 0:
            without.append(name)
        else:
            room -= needed
    return without
