"""The map of where weights changed, at four levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd
import plotly.graph_objects as go

from probes.results import ProbeResult, sorted_frame
from probes.weights.stacks import LANGUAGE
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

    ``score`` is the relative change ||D|| / ||W|| (Frobenius), and the absolute one ||D|| where W is all zeros
    (``from_zero``). ``stack`` says which stack of layers a row belongs to: "language", or by its name a vision, audio
    or encoder stack beside it, each tested among its own rows. The weights are known exactly, so ``low`` and
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
    notes: tuple[str, ...] = ()
    """What a reader must know of how the weights were read, in sentences."""
    no_heads: str = ""
    """Why there is no level of heads; empty where there is one."""

    title: ClassVar[str] = "Where the weights changed"
    unit: ClassVar[str] = "relative change ‖ΔW‖ / ‖W‖"

    @property
    def stacks(self) -> tuple[str, ...]:
        """Every stack of layers, the language model's first."""
        return tuple(dict.fromkeys(self.table["stack"])) if "stack" in self.table else (LANGUAGE,)

    def frame(self, level: Level = "module", stack: str | None = LANGUAGE) -> pd.DataFrame:
        """The table at one level, most changed first.

        Args:
            level: module, layer, head, expert or head_part.
            stack: one of :attr:`stacks`; None for the rows of all of them.
        """
        return sorted_frame(self._level(level, stack))

    def figure(self, level: Level = "module", stack: str = LANGUAGE) -> go.Figure:
        """A map of one stack at one level: layer x module, layer x head, layer x expert; bars for layers."""
        table = self._level(level, stack)
        if level == "layer":
            return figures.layer_bars(table, title=f"{self.title}, by layer", unit=self.unit)
        column = "module" if level == "head_part" else level
        if level == "head_part":
            table = table.assign(module=table["module"] + table["head"].astype(str))
        return figures.cell_map(table, column, title=f"{self.title}, by {level.replace('_', ' ')}", unit=self.unit)

    def summary(self) -> str:
        """The most changed module and head, in a sentence; of other stacks than the language model's the module."""
        text = f"{len(self.table)} modules; most changed: {_told(self.frame().iloc[0])}"
        if len(self.heads):
            head = self.frame("head").iloc[0]
            text += f"; head L{int(head['layer'])}H{int(head['head'])} ({head['score']:.3g}, q {head['q']:.2g})"
        for stack in self.stacks[1:]:
            text += f"; in {stack}: {_told(self.frame(stack=stack).iloc[0])}"
        left = f"; {len(self.unmatched)} tensors only on one side" if self.unmatched else ""
        return " ".join([f"{text}{left}.", *self.notes, f"Control: {self.control}."])

    def _level(self, level: Level, stack: str | None) -> pd.DataFrame:
        if level not in LEVELS:
            raise unknown_name("level", level, LEVELS)
        tables = {
            "module": self.table, "layer": self.layers, "head": self.heads,
            "expert": self.experts, "head_part": self.head_parts,
        }[level]  # fmt: skip
        if stack not in (None, *self.stacks):
            raise unknown_name("stack", str(stack), self.stacks)
        if stack is not None and "stack" in tables:
            tables = tables[tables["stack"] == stack]
        if tables.empty and self.no_heads and level in ("head", "head_part"):
            raise UserError(f"The weights cannot be split by head; try frame('module'). {self.no_heads}")
        if tables.empty:
            raise UserError(f"This pair has no {level.replace('_', ' ')} to show; try frame('module').")
        return tables


def _told(row: Any) -> str:
    """A row of the module table in words."""
    moved = f"{row['score']:.3g} from zero" if row.get("from_zero", False) else f"{row['score']:.3g} of its norm"
    return f"{row['name']} ({moved})"
