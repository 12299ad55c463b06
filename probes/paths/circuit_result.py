"""What the test of a circuit returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go

from probes.results import SHARED, ProbeResult


@dataclass(frozen=True, kw_only=True)
class CircuitTest(ProbeResult):
    """How far a circuit alone does what the whole model does, in each model.

    ``table`` has a row per model: ``score`` is the faithfulness F(C) / F(M) with its interval over prompts, ``control``
    (``control_low``, ``control_high``) that of random circuits of equal size, ``p`` and ``q`` the chance that one of
    those does as well; ``full`` F(M), ``circuit`` F(C), ``empty`` F with every head ablated, ``heads`` their number.
    """

    heads: dict[str, list[str]]
    """The circuit: place -> labels."""
    random: list[dict[str, list[str]]]
    """The circuits it is compared with."""
    metric: str
    completeness: pd.DataFrame
    """``score`` = abs(F(C without K) - F(M without K)) for K = a whole group of the circuit (``removed`` names its
    place) or a random part of it; small means that little of the behaviour lives outside. ``low``, ``high``: interval
    of the signed ``difference``."""
    minimality: pd.DataFrame | None
    """``score`` = relative drop when the head is removed after its most redundant companions; ``kept`` where it is at
    least the threshold. None unless asked for."""
    title: ClassVar[str] = "Circuit"
    unit: ClassVar[str] = "faithfulness F(C) / F(M)"

    def frame(self) -> pd.DataFrame:
        """The table, most faithful model first. Its cells are models, so there is no layer column."""
        frame = super().frame().drop(columns="layer")
        return frame[["model", *SHARED, *frame.columns.difference(["model", *SHARED], sort=False)]]

    def minimal(self, model: str) -> dict[str, list[str]]:
        """The circuit without the heads that ``model`` does not need."""
        if self.minimality is None:
            return self.heads
        part = self.minimality[(self.minimality["model"] == model) & self.minimality["kept"]]
        labels = [f"L{layer}H{head}" for layer, head in zip(part["layer"], part["head"], strict=True)]
        heads: dict[str, list[str]] = {place: [] for place in self.heads}
        for place, label in zip(part["place"], labels, strict=True):
            heads[place].append(label)
        return heads

    def figure(self) -> go.Figure:
        """Faithfulness in each model beside random circuits."""
        from workbench.figures.circuits import beside_random

        return beside_random(self.table, name="model", title=f"Circuit alone, {self.metric}", y=self.unit)

    def summary(self) -> str:
        lines = ", ".join(
            f"{row.model} {row.circuit:.3g} / {row.full:.3g} = {row.score:.3g}" for row in self.table.itertuples()
        )
        return f"{self.metric} of the circuit / of the model: {lines}; control: {self.control}"
