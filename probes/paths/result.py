"""What path patching returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.paths.places import label_of
from probes.results import ProbeResult
from workbench.typing import Float


@dataclass(frozen=True, kw_only=True)
class PathPatching(ProbeResult):
    """What each head says, from another run, to the receivers alone: how much the answer changes.

    ``score`` is the mean change of the metric; the most NEGATIVE head is the most important, and comes first.
    ``control`` is the mean score of random other senders.
    """

    source: str
    """The run that the senders' outputs come from."""
    target: str
    receivers: list[str]
    """Labels of the receiving heads; empty for the logits."""
    through: str
    """q, k or v of the receivers, or logits."""
    place: str
    """The position of senders and receivers."""
    metric: str
    freeze_mlps: bool
    """False: MLPs recompute from what the sender changed; True: they say what they said in the clean run."""
    clean: tuple[float, float, float]
    """Mean probability of the answer (prob_ratio) or logit difference of the run that is patched, with its interval."""
    effects: Float[np.ndarray, "prompt cell"]
    """Change of the metric per prompt, cells in the order of ``table``."""
    title: ClassVar[str] = "Path patching"
    unit: ClassVar[str] = "change of the metric"

    def frame(self) -> pd.DataFrame:
        """The table, most important (most negative) head first."""
        return super().frame().sort_values("score", kind="stable", ignore_index=True)

    def best(self, count: int) -> list[str]:
        """Labels of the ``count`` most important heads, to be the receivers of the next step or a circuit's heads."""
        leading = self.frame().head(count)
        return [
            label_of((int(layer), int(head))) for layer, head in zip(leading["layer"], leading["head"], strict=True)
        ]

    def importance(self) -> pd.DataFrame:
        """The table with the sign turned, so that the most important head has the largest score (for ``compare``)."""
        table = self.table.assign(score=-self.table["score"], low=-self.table["high"], high=-self.table["low"])
        return table.assign(control=-table["control"]).sort_values("score", ascending=False, ignore_index=True)

    def figure(self) -> go.Figure:
        """Layer by head."""
        from workbench.figures.heads import head_heatmap

        return head_heatmap(self.table, title=f"Paths to {self._receivers()}", score=f"change of {self.metric}")

    def summary(self) -> str:
        significant = int((self.table["q"] < 0.05).sum())
        mlps = "frozen" if self.freeze_mlps else "recomputed"
        return (
            f"{significant} of {len(self.table)} senders with q < 0.05, towards {self._receivers()} at {self.place}; "
            f"MLPs {mlps}; most negative = most important; control: {self.control}"
        )

    def _receivers(self) -> str:
        if not self.receivers:
            return "the logits"
        shown = ", ".join(self.receivers[:4]) + (" …" if len(self.receivers) > 4 else "")
        return f"{self.through} of {shown}"
