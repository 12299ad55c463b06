"""What component masking returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go

from probes.results import SHARED, ProbeResult


@dataclass(frozen=True, kw_only=True)
class ComponentMasking(ProbeResult):
    """Which heads carry each variable, and how well moving them moves the answer, on prompts no choice was made on.

    ``table`` has a row per model and desideratum: ``score`` is the accuracy of the chosen mask towards the target, with
    its interval over prompts; ``control`` (``control_low``, ``control_high``) that of as many random heads, with ``p``
    and ``q``; ``floor`` the accuracy with no head moved, which is what an empty mask scores; ``heads`` their number,
    ``penalty`` and ``validation`` (accuracy) of the choice; ``other`` the accuracy of the mask found in the other model
    of the pair.
    """

    masks: pd.DataFrame
    """Per model, desideratum and head: ``taken`` = 1 - the mask's weight (1: takes the source's output), ``chosen``."""
    sweep: pd.DataFrame
    """Per model, desideratum, penalty and epoch: validation accuracy, number and labels of the heads."""
    place: str
    title: ClassVar[str] = "Component masking"
    unit: ClassVar[str] = "accuracy towards the target"

    def frame(self) -> pd.DataFrame:
        """The table, best score first. Its cells are models and desiderata, so there is no layer column."""
        frame = super().frame().drop(columns="layer")
        first = ["model", "desideratum", *SHARED]
        return frame[[*first, *frame.columns.difference(first, sort=False)]]

    def heads(self, desideratum: str, model: str | None = None) -> list[str]:
        """Labels of the chosen heads; ``model`` may be left out when there is one."""
        part = self.masks[(self.masks["desideratum"] == desideratum) & self.masks["chosen"]]
        part = part if model is None else part[part["model"] == model]
        return [f"L{layer}H{head}" for layer, head in zip(part["layer"], part["head"], strict=True)]

    def figure(self) -> go.Figure:
        """Accuracy per desideratum and model, beside random heads and the floor."""
        from workbench.figures.circuits import beside_random

        return beside_random(
            self.table, name="desideratum", group="model", floor="floor", y=self.unit,
            title=f"Heads moved at {self.place}",
        )  # fmt: skip

    def summary(self) -> str:
        lines = "; ".join(
            f"{row.desideratum} in {row.model} {row.score:.2f} with {row.heads} heads (floor {row.floor:.2f})"
            for row in self.table.itertuples()
        )
        return f"{lines}; control: {self.control}"
