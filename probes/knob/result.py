"""What :func:`probes.find_knob` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import plotly.graph_objects as go

from probes.results import ProbeResult
from workbench.errors import unknown_name
from workbench.typing import Float, Tensor

if TYPE_CHECKING:
    from interventions import Recipe


@dataclass(frozen=True, kw_only=True)
class Knob(ProbeResult):
    """A direction (or subspace) at the last token, with how to set it.

    ``table``: one row per candidate layer; ``score`` is the share of held-out swaps after which the tuned model
    gives the partner's answer, beside ``means`` (difference of means), ``patched`` (the whole residual swapped),
    ``cosine`` to the difference of means.
    """

    layer: int
    direction: Float[Tensor, "d_model rank"]
    """Orthonormal columns. The positive end is ``intents[0]``; the scale is this model's own."""
    line: Float[Tensor, " rank"]
    offset: Float[Tensor, " rank"]
    intents: tuple[str, str]
    settings: dict[str, float]
    """The set value per intent, chosen on the training pairs."""
    natural: pd.DataFrame
    """model, group, intent, value: the coordinate as the models leave it."""
    sweep: pd.DataFrame
    """model, direction (knob, random), value, intent, share, low, high."""
    flips: pd.DataFrame
    """model, intent, value, share, low, high, before, control: rows asked for the other intent."""
    swaps: pd.DataFrame
    """model, score, low, high, control: interchange along the same subspace."""
    search: pd.DataFrame
    """direction, layers, probability, chosen: the layer search."""
    counts: dict[str, int]
    """Pairs given, left out for which reason, trained on, held out."""
    skill: dict[str, float]
    """Share of pairs right under both intents (PairAcc), tuned and base."""

    title: ClassVar[str] = "Knob"
    unit: ClassVar[str] = "share of swaps that bring the other intent's answer"

    def recipe(self, value: float | str, positions: str = "last+generated") -> Recipe:
        """A recipe that sets the knob to a number, or to an intent's chosen setting ("context")."""
        from interventions import Recipe, SubspaceKnob

        if isinstance(value, str):
            if value not in self.settings:
                raise unknown_name("intent", value, self.settings)
            value = self.settings[value]
        coordinates = self.offset + value * self.line
        return Recipe([SubspaceKnob(self.layer, self.direction.T, coordinates, positions=positions)])

    def summary(self) -> str:
        best = self.table[self.table["layer"] == self.layer].iloc[0]
        used, pairs = self.counts["train"] + self.counts["held_out"], self.counts["given"]
        return (
            f"Layer {self.layer}, rank {self.direction.shape[1]}: {best['score']:.0%} of held-out swaps "
            f"[{best['low']:.0%}, {best['high']:.0%}] bring the other intent's answer, random subspaces "
            f"{best['control']:.0%}. Pairs right both ways: tuned {self.skill['tuned']:.0%}, base "
            f"{self.skill['base']:.0%}; {used} of {pairs} pairs used ({self.counts['held_out']} held out)."
        )

    def figure(self) -> go.Figure:
        """Dose and response: share of each intent's answers against the set value, with the random band."""
        from workbench.figures.knob import knob_slope

        return knob_slope(
            self.sweep,
            self.natural,
            intent=self.intents[0],
            title=f"Knob at layer {self.layer}, rank {self.direction.shape[1]} "
            f"(n = {self.counts['held_out']} held-out pairs)",
        )
