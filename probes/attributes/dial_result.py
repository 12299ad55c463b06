"""What ``intensity_dial`` returns: an attribute at every setting of a dial, and the recipe of a setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import interventions as iv
from probes.results import ProbeResult
from workbench.errors import UserError
from workbench.typing import Float, Tensor

CUT = 0.1
"""From this share of plain texts on, the summary says that the limit of new tokens hides a part of the attribute."""


@dataclass(frozen=True, kw_only=True)
class IntensityDial(ProbeResult):
    """An attribute under a dial that was calibrated on other prompts.

    ``table``: dial (0 to 1), strength (of the offset, in mean norms of the site); ``score``, the attribute in texts,
    with interval; ``wanted``, where a straight line between the ends lies; ``control``, the attribute under random
    directions (at both ends; NaN between); ``perplexity`` of the texts under the plain model; ``cut``, the share of
    texts that the limit of new tokens ended.
    """

    attribute: str
    numbers: pd.DataFrame
    """number, score, low, high, control: ``range`` (end minus end), ``calibration`` (mean distance from the straight
    line; 0 is best), ``consistency`` (mean over settings of the standard deviation over prompts; low is steady), in
    standard deviations of the attribute in plain samples, and ``monotonicity`` (Kendall's tau of setting and mean
    attribute: 1 where every step up is more of it); ``control`` is the range under random directions, and 0 for
    monotonicity, which is what settings in random order have."""
    sides: pd.DataFrame
    """side (less, more), strength of that end; score, how far its texts lie on that side of the plain ones, in standard
    deviations of plain samples, with low, high; control, that under random directions; ``usable``: low is above 0, and
    score above the control; cut, as in the table."""
    plain_cut: float
    """Share of the plain texts that the limit of new tokens ended."""
    off_target: pd.DataFrame
    """dial, attribute, change (in standard deviations of plain samples, from the plain text)."""
    layer: int
    vector: Float[Tensor, " d_model"]
    """One mean norm of the site along the attribute's direction."""
    settings: list[float]
    """Strength at each setting of the dial."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Intensity dial"
    unit: ClassVar[str] = "attribute in the texts"

    def recipe(self, dial: float) -> iv.Recipe:
        """The recipe at a setting from 0 to 1.

        Raises:
            UserError: The setting lies outside.
        """
        if not 0 <= dial <= 1:
            raise UserError(f"The dial is {dial}: give a setting from 0 to 1.")
        strength = float(np.interp(dial, np.linspace(0, 1, len(self.settings)), self.settings))
        return iv.Recipe([iv.Offset(self.layer, self.vector, strength=strength, positions="last+generated")])

    def frame(self) -> pd.DataFrame:
        """The table by setting."""
        return self.table.copy()

    def figure(self) -> go.Figure:
        """The attribute against the dial, with the straight line."""
        drawn = go.Figure([
            go.Scatter(x=self.table["dial"], y=self.table["score"], name=self.attribute, mode="lines+markers",
                       error_y={"type": "data", "symmetric": False, "array": self.table["high"] - self.table["score"],
                                "arrayminus": self.table["score"] - self.table["low"]}),
            go.Scatter(x=self.table["dial"], y=self.table["wanted"], name="straight", line={"dash": "dot"}),
        ])  # fmt: skip
        drawn.update_layout(title=self.title, xaxis_title="dial", yaxis_title=self.attribute)
        return drawn

    def summary(self) -> str:
        """Range, calibration and consistency."""
        said = ", ".join(
            f"{row.number} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in self.numbers.itertuples()
        )
        return (
            f"{self.attribute} at L{self.layer}: {said} (standard deviations of plain samples, a tau); range under "
            f"random directions {self.numbers['control'].iloc[0]:.2f}; {self._said_of_sides()}; intervals over "
            f"{self.resampled}; control: {self.control}"
        )

    def _said_of_sides(self) -> str:
        """What each side of the plain texts has, and what the limit of new tokens hides."""
        said = [
            f"{row.side} than the plain texts by {row.score:.2f} [{row.low:.2f}, {row.high:.2f}]" if row.usable else
            f"nothing {row.side} than the plain texts beyond chance ({row.score:.2f} [{row.low:.2f}, {row.high:.2f}], "
            f"random directions {row.control:.2f})"
            for row in self.sides.itertuples()
        ]  # fmt: skip
        if self.plain_cut > CUT:
            said.append(
                f"{self.plain_cut:.0%} of the plain texts end at the limit of new tokens and hide what would come "
                "behind it: give a larger max_new_tokens"
            )
        return "; ".join(said)
