"""What recording leaves: activations by model and site, or their statistics, with an index of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.cards import card
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.recording.reader import ShardReader


class NonFiniteWarning(UserWarning):
    """Activations are NaN or infinite; they are kept as found and listed in ``Recording.nonfinite``."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Activations of both models on the same token ids.

    ``rec["tuned"]["blocks.3.attn.hook_z"]`` is [row, head, d_head] (residual sites [row, d_model]; a router
    adds ``….experts`` and ``….weights`` [row, k]); short names with a layer work too: ``rec["tuned"]["z",
    3]``. Rows are in the order of the prompts, then of positions; ``index`` names them. Without a store
    (``store=None``) ``moments`` hold count, mean, variance instead, with the role "difference" for tuned -
    base.
    """

    _index: pd.DataFrame | Callable[[], pd.DataFrame]
    """:attr:`index`, or what makes it when it is first asked for."""
    config: dict[str, Any]
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    top: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """role -> site -> the rows of largest norm, streamed (``store=None`` and ``top=k``)."""
    folder: Path | None = None
    n_rows: int | None = None
    """How many rows there are, where it is known without the index."""
    known_nonfinite: tuple[tuple[str, str, int], ...] | None = None
    """What :attr:`nonfinite` says, where it is known without the index."""

    @cached_property
    def index(self) -> pd.DataFrame:
        """One line per row: prompt, position, token_id, token, phase (prompt | generated), content (neither the first
        token, nor special, nor the chat template's), group, label, and nonfinite: the ``role/site`` names whose value
        is NaN or infinite there, joined by ``;``. Empty without a store."""
        return self._index() if callable(self._index) else self._index

    @property
    def nonfinite(self) -> tuple[tuple[str, str, int], ...]:
        """(role, site, prompt) of every NaN or infinite value. They are left out of streamed statistics."""
        return flagged_in(self.index) if self.known_nonfinite is None else self.known_nonfinite

    @property
    def roles(self) -> list[str]:
        """The models recorded, such as base and tuned."""
        return list(self.config["roles"])

    @property
    def sites(self) -> list[str]:
        """Canonical names of the recorded sites."""
        return list(self.config["sites"])

    @property
    def n_prompts(self) -> int:
        """How many prompts were recorded."""
        return int(self.config["n_prompts"])

    def __len__(self) -> int:
        return len(self.index) if self.n_rows is None else self.n_rows

    def __getitem__(self, role: str) -> Sites:
        if role not in self.tensors:
            if self.moments:
                raise UserError(
                    "This recording streamed statistics and kept no rows: use .moments, or record with "
                    'store="memory" or a folder.'
                )
            raise unknown_name("model of this recording", role, self.tensors)
        return Sites(self.tensors[role])

    def __repr__(self) -> str:
        where = f"in {self.folder}" if self.folder else ("in memory" if self.tensors else "statistics only")
        return (
            f"Recording({len(self)} rows of {self.n_prompts} prompts, {' and '.join(self.roles)}, "
            f"{len(self.sites)} sites, {where})"
        )

    def _repr_html_(self) -> str:
        where = f"in {self.folder}" if self.folder else ("in memory" if self.tensors else "statistics only")
        facts = {
            "models": " and ".join(self.roles),
            "sites": ", ".join(self.sites),
            "rows": f"{len(self)} of {self.n_prompts} prompts, {where}",
            "positions": _in_short(self.config.get("positions", "")),
        }
        return card("Recording", facts, None if self.index.empty else self.index.head(8))

    @classmethod
    def load(cls, folder: str | Path, *, check: bool = True) -> Recording:
        """Open a recording that was stored in ``folder``; rows are memory-mapped.

        Args:
            folder: where :func:`workbench.record` stored it (``activations`` of a run).
            check: hash every file before anything is read (about a second per GB); False trusts the disk.

        Raises:
            UserError: a file is missing, or not what was written; the sentence names it.
        """
        reader = ShardReader(folder, check=check)
        return cls(reader.index, reader.config, reader, folder=Path(folder))


class Sites(Mapping[str, Any]):
    """The sites of one model: by canonical name, or by (short name, layer)."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str | tuple[str, int]) -> Any:
        name = Site.parse(key[0]).at(key[1]).name if isinstance(key, tuple) else key
        if name not in self._tensors:
            raise unknown_name("site of this recording", name, self._tensors)
        return self._tensors[name]

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Sites({', '.join(self._tensors)})"


def _in_short(positions: Any) -> Any:
    """The positions as they were given, where nothing but where they are was."""
    return positions["at"] if isinstance(positions, dict) and set(positions) == {"at"} else positions


def flagged_in(index: pd.DataFrame) -> tuple[tuple[str, str, int], ...]:
    """(role, site, prompt) of every non-finite value, from the index's own column."""
    if "nonfinite" not in index:
        return ()
    anywhere = index["nonfinite"].notna().to_numpy()
    if not anywhere.any():
        return ()
    marked = index.loc[anywhere, ["prompt", "nonfinite"]]
    flagged: set[tuple[str, str, int]] = set()
    for prompt, names in zip(marked["prompt"], marked["nonfinite"], strict=True):
        for role, _, site in (name.partition("/") for name in str(names).split(";")):
            flagged.add((role, site, int(prompt)))
    return tuple(sorted(flagged))
