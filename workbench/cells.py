"""What a row of a result is about: a place in a model, a direction, a group; and its label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

from workbench.engine.sites import KINDS
from workbench.errors import UserError

Number = int | float | str | None
_INDEX = r"0|[1-9][0-9]*"
"""One way to write each number, so that no cell has two labels."""
_PLACE = re.compile(rf"L(?P<layer>{_INDEX})(?:H(?P<head>{_INDEX})|E(?P<expert>{_INDEX}))?(?: (?P<rest>.+))?")
_NUMBERED = re.compile(r"(?P<name>position|direction|first) (?P<number>-?\d+)")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Which cell of a result: the fields are the columns that tell its rows apart, None where a table has none.

    Cells sort by layer, head, expert, then the rest.

        >>> Cell.of({"layer": 3, "head": 5.0, "score": 0.2}).label
        'L3H5'
        >>> Cell.of({"layer": 1, "site": "mlp_out", "head": None}).label
        'L1 mlp_out'
        >>> Cell.parse("L1H2") < Cell.parse("L1H12")
        True
    """

    layer: int | None = None
    head: int | None = None
    expert: int | None = None
    site: str | None = None
    """The kind of site, such as ``resid_post``."""
    module: str | None = None
    """A part of the layer, such as ``mlp.gate``."""
    phase: str | None = None
    group: str | None = None
    desideratum: str | None = None
    model: str | None = None
    token: str | None = None
    direction: Number = None
    position: Number = None
    """A token's place: a number, or the name of a column that holds one for each prompt."""
    count: int | None = None
    """How many of a ranking, taken together."""

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Cell:
        """The cell of a row of a result's table; what is missing there (NaN, None) is None here."""
        return cls(**{name: _plain(name, row[name]) for name in COLUMNS if name in row and _known(row[name])})

    @classmethod
    def parse(cls, label: str) -> Cell:
        """The cell that a label names: ``L3``, ``L3H5``, ``L3E2``, each also with a site, a module, a position or a
        direction behind it (``L3 mlp_out``, ``L3H5 position -1``); ``direction 1``, ``first 4``.

        Raises :class:`UserError` for what is no such label.
        """
        text = label.strip()
        if _NUMBERED.fullmatch(text):
            return cls(**_qualifier(text))
        match = _PLACE.fullmatch(text)
        if match is None:
            raise UserError(f"{label!r} is no cell: write L3 (layer), L3H5 (head), L3E2 (expert) or L3 mlp_out (site).")
        place: dict[str, Any] = {name: int(match[name]) for name in AXES if match[name] is not None}
        return cls(**place, **(_qualifier(match["rest"]) if match["rest"] else {}))

    @property
    def key(self) -> tuple[tuple[bool, bool, Any], ...]:
        """What cells are sorted by; equal for equal cells."""
        return tuple((value is None, isinstance(value, str), value) for value in astuple(self))

    @property
    def label(self) -> str:
        """How people write it; ``all`` for a cell of nothing in particular."""
        place = "" if self.layer is None else f"L{self.layer}"
        place += "" if self.head is None else f"H{self.head}"
        place += "" if self.expert is None else f"E{self.expert}"
        parts = [place, *(getattr(self, name) for name in _WORDS)]
        for name in ("direction", "position"):
            value = getattr(self, name)
            parts.append(value if value is None or isinstance(value, str) else f"{name} {value}")
        parts.append(None if self.count is None else f"first {self.count}")
        return " ".join(part for part in parts if part) or "all"

    def __lt__(self, other: Cell) -> bool:
        return self.key < other.key


COLUMNS = tuple(field.name for field in fields(Cell))
"""The columns of a result's table that say which cell a row is about."""
AXES = ("layer", "head", "expert")
"""Those that number the parts of a model."""
_WORDS = ("site", "module", "phase", "group", "desideratum", "model", "token")


def label(row: Mapping[Any, Any]) -> str:
    """What a row of a result is about, as people write it."""
    return Cell.of(row).label


def _known(value: Any) -> bool:
    import pandas as pd  # a glance at a file needs the names of the columns only

    return value is not None and not pd.isna(value)


def _plain(name: str, value: Any) -> Any:
    """Whole numbers as ints, whatever the column's type; text as it is; a token's number as such."""
    if name == "token" and not isinstance(value, str):
        return f"token {float(value):g}"
    if isinstance(value, str) or name in _WORDS:
        return str(value)
    return int(value) if float(value).is_integer() else float(value)


def _qualifier(text: str) -> dict[str, Any]:
    numbered = _NUMBERED.fullmatch(text)
    if numbered is not None:
        return {"count" if numbered["name"] == "first" else numbered["name"]: int(numbered["number"])}
    return {"site" if text in KINDS else "module": text}
