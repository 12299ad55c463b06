"""What a patching run returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.results import ProbeResult
from workbench.tables import beyond_control
from workbench.typing import Float


@dataclass(frozen=True, kw_only=True)
class Patching(ProbeResult):
    """Effect of putting the source run's activation into the target run, cell by cell.

    ``score`` is the share of the way from the target's metric (0) to the source's (1) when ``normalised``, else the
    signed change of the metric. Further columns: ``effect`` (signed change), ``restored`` (0 = corrupted, 1 = clean,
    whichever way was patched), ``exact`` (False: an estimate by gradients), ``attribution`` (that estimate) and
    ``confirmed`` (leading, random: patched exactly, because the estimate leads or by lot; no: estimated alone).
    ``position`` counts from the front where all prompts have one length, else back from the last token (-1).
    """

    source: str
    target: str
    metric: str
    normalised: bool
    source_value: tuple[float, float, float]
    """Mean metric of the source run with its 95 % interval."""
    target_value: tuple[float, float, float]
    effects: Float[np.ndarray, "prompt cell"]
    """Change of the metric per prompt, cells in the order of ``table``."""
    together: pd.DataFrame | None
    """The best ``count`` heads patched at once (score, low, high) beside as many random heads of the same layers
    (control, control_low, control_high)."""
    tokens: list[str] | None
    """The first prompt's tokens, for the position axis, where all prompts have one length."""
    agreement: pd.DataFrame | None = None
    """How far estimates and exact scores lie apart (:func:`probes.patches.fast_pass.agreement`); None where every cell
    was patched."""
    title: ClassVar[str] = "Patching"
    unit: ClassVar[str] = "share of the way from target to source"

    @property
    def scale(self) -> str:
        """What 0 and 1 mean, in words."""
        if not self.normalised:
            return f"change of {self.metric}"
        meaning = {"tuned": "as tuned", "base": "as base", "clean": "clean", "corrupted": "corrupted"}
        return f"{self.metric}: 0 = {meaning[self.target]}, 1 = {meaning[self.source]}"

    def figure(self) -> go.Figure:
        """Layer by head, or layer by position for each site; the title says what 0 and 1 are."""
        from workbench.figures.patching import patch_heatmap

        return patch_heatmap(
            self.table,
            title=f"Patching {self.source} into {self.target} (n = {len(self.effects)} prompts)",
            score=self.scale,
            tokens=self.tokens,
        )

    def together_figure(self) -> go.Figure:
        """The best heads patched at once beside random ones."""
        from workbench.figures.patching import together_lines

        return together_lines(self.together, score=self.scale)

    def summary(self) -> str:
        beyond = beyond_control(self.table)
        return (
            f"{int(beyond.sum())} of {len(self.table)} cells beyond their control (q < .05); {self.metric} "
            f"{self.target_value[0]:.3g} in the target ({self.target}), {self.source_value[0]:.3g} in the source "
            f"({self.source}); control: {self.control}"
            f"{self._confirmed()}"
        )

    def _confirmed(self) -> str:
        """Which cells are exact, and how far the others may be trusted."""
        if self.agreement is None:
            return ""
        by_kind = {str(row["confirmed"]): row for row in self.agreement.to_dict("records")}
        if not by_kind:
            return "; every score is an estimate by gradients"
        counted = " and ".join(f"{row['n']} {kind}" for kind, row in by_kind.items())
        drawn = by_kind.get("random")
        error = "" if drawn is None else f", which is at most {drawn['largest_error']:.2g} off in the random ones"
        return f"; exact in {counted} cells, an estimate by gradients in the others{error} (exact=True patches all)"
