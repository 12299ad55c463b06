"""A behaviour that is one number per prompt, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from workbench.methods import Method
from workbench.prompts.collection import Prompts
from workbench.results import Provenance, Result
from workbench.stats.bootstrap import mean_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, kw_only=True)
class ByPrompt(Result):
    """One number per prompt. ``table``: ``prompt`` (its place), ``score``; ``mean`` with its 95 % interval."""

    mean: dict[str, float]

    title: ClassVar[str] = "By prompt"

    @classmethod
    def of(
        cls, method: Method, settings: Mapping[str, Any], model: Any, rows: Prompts, scores: np.ndarray, seed: int
    ) -> ByPrompt:
        """From the scores that a registered behaviour returns for ``rows``."""
        made = Provenance.of(method.function, {model.role: model}, rows, seed=seed, device=str(model.device),
                             settings=dict(settings))  # fmt: skip
        table = pd.DataFrame({"prompt": np.arange(len(scores)), "score": np.asarray(scores, dtype=np.float64)})
        interval = mean_interval(table["score"].to_numpy(), clusters=rows.clusters, seed=seed)
        return cls(
            table=table, provenance=made, mean={name: float(value) for name, value in interval._asdict().items()}
        )

    def figure(self) -> go.Figure:
        """How often each score occurs."""
        import plotly.express as px

        return px.histogram(self.table, x="score", nbins=20)

    def summary(self) -> str:
        """The mean with its interval."""
        mean = self.mean
        return f"mean {mean['estimate']:.3g} [{mean['low']:.3g}, {mean['high']:.3g}] over {len(self.table)} prompts"
