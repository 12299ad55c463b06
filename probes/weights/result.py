"""The map of where weights changed, at four levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pandas as pd
import plotly.graph_objects as go

from probes.results import ProbeResult, sorted_frame
from workbench.errors import UserError, unknown_name
from workbench.figures import weights as figures
from workbench.typing import Tensor

Level = Literal["module", "layer", "head", "expert", "head_part"]
LEVELS: tuple[Level, ...] = ("module", "layer", "head", "expert", "head_part")

CONTROL = (
    "the same total change spread evenly over the layer's weights (mean under permutation); for ranks, a Gaussian "
    "change of the same shape and norm (for a LoRA, of the same rank); a model against itself gives exactly 0"
)


@dataclass(frozen=True, kw_only=True)
class WeightDelta(ProbeResult):
    """Change of weights by module (``table``), layer, head, part of a head, and expert.

    ``score`` is the relative change ||D|| / ||W|| (Frobenius). The weights are known exactly, so ``low`` and
    ``high`` equal it; the ranks of large matrices are estimates with their own interval (``effective_low``,
    ``effective_high``). ``q`` asks whether a cell changed more than its peers, judged by their median and MAD.
    ``factors`` is filled for a LoRA: norms and ranks of A and B. ``directions`` maps ``<tensor>/values``,
    ``/left`` and ``/right`` to leading singular values [k] and directions [out, 4], [into, 4].
    """

    layers: pd.DataFrame
    heads: pd.DataFrame
    head_parts: pd.DataFrame
    experts: pd.DataFrame
    factors: pd.DataFrame
    directions: dict[str, Tensor]
    unmatched: tuple[str, ...]
    no_heads: str = ""
    """Why there is no level of heads; empty where there is one."""

    title: ClassVar[str] = "Where the weights changed"
    unit: ClassVar[str] = "relative change ‖ΔW‖ / ‖W‖"

    def frame(self, level: Level = "module") -> pd.DataFrame:
        """The table at one level, most changed first."""
        return sorted_frame(self._level(level))

    def figure(self, level: Level = "module") -> go.Figure:
        """A map at one level: layer x module, layer x head, layer x expert; bars for layers."""
        table = self._level(level)
        if level == "layer":
            return figures.layer_bars(table, title=f"{self.title}, by layer", unit=self.unit)
        column = "module" if level == "head_part" else level
        if level == "head_part":
            table = table.assign(module=table["module"] + table["head"].astype(str))
        return figures.cell_map(table, column, title=f"{self.title}, by {level.replace('_', ' ')}", unit=self.unit)

    def summary(self) -> str:
        """The most changed module and head, in a sentence."""
        best = self.frame().iloc[0]
        text = f"{len(self.table)} modules; most changed: {best['name']} ({best['score']:.3g} of its norm)"
        if len(self.heads):
            head = self.frame("head").iloc[0]
            text += f"; head L{int(head['layer'])}H{int(head['head'])} ({head['score']:.3g}, q {head['q']:.2g})"
        left = f"; {len(self.unmatched)} tensors only on one side" if self.unmatched else ""
        return f"{text}{left}. Control: {self.control}."

    def _level(self, level: Level) -> pd.DataFrame:
        if level not in LEVELS:
            raise unknown_name("level", level, LEVELS)
        found = {
            "module": self.table, "layer": self.layers, "head": self.heads,
            "expert": self.experts, "head_part": self.head_parts,
        }[level]  # fmt: skip
        if found.empty and self.no_heads and level in ("head", "head_part"):
            raise UserError(f"The weights cannot be split by head; try frame('module'). {self.no_heads}")
        if found.empty:
            raise UserError(f"This pair has no {level.replace('_', ' ')} to show; try frame('module').")
        return found
