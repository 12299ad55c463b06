"""Which columns of a table a terminal has room for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.cells import cell_len

_GAP = 3
_PROSE = 40
"""A longer cell of several words is a text, which can be read in folds; numbers and names cannot."""
_FOLD = 20
"""A text folded to less than this many signs is read word by word."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|inf|nan)?")
_NUMBERS = ("score", "low", "high", "control", "q")
"""What a finding is judged by."""


def texts_of(columns: Mapping[str, Sequence[str]]) -> set[str]:
    """The columns (name -> its header and cells) that hold texts."""
    return {name for name, cells in columns.items() if any(cell_len(cell) > _PROSE and " " in cell for cell in cells)}


def left_out(columns: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """The columns for which ``width`` signs have no room: texts have theirs first, folded, then score, interval,
    control and q, then names, which tell rows apart, then the first others that fit. The very first stays in any case.
    """
    texts, names = texts_of(columns), list(columns)
    needed = {name: (_FOLD if name in texts else max(map(cell_len, cells))) + _GAP for name, cells in columns.items()}
    room = width - 1 - sum(needed[name] for name in names[:1])
    without = set()
    order = {name: (name not in texts, name not in _NUMBERS, _is_numeric(columns[name][1:])) for name in names}
    for name in sorted(names[1:], key=order.__getitem__):
        if needed[name] > room:
            without.add(name)
        else:
            room -= needed[name]
    return [name for name in names if name in without]


def _is_numeric(cells: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(cell) for cell in cells)
