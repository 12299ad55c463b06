"""A behaviour that is one number per prompt, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """One number per prompt. ``table``: ``prompt`` (its place), ``score``, and ``control`` where the method has one;
    ``mean`` with its 95 % interval, ``control`` and ``beyond`` (score - control, paired by prompt) alike."""

    mean: dict[str, float]
    control: dict[str, float] = field(default_factory=dict)
    beyond: dict[str, float] = field(default_factory=dict)
    what: str = ""
    """What the number of a prompt is."""

    title: ClassVar[str] = "By prompt"

    @classmethod
    def of(
        cls, method: Method, settings: Mapping[str, Any], model: Any, rows: Prompts, scores: np.ndarray, seed: int,
        control: np.ndarray | None = None,
    ) -> ByPrompt:  # fmt: skip
        """From the scores that a registered behaviour returns for ``rows``, and those of its control."""
        made = Provenance.of(method.function, {model.role: model}, rows, seed=seed, device=str(model.device),
                             settings=dict(settings))  # fmt: skip
        own, what = np.asarray(scores, dtype=np.float64), method.summary.partition(":")[0].rstrip(".")
        table = pd.DataFrame({"prompt": np.arange(len(own)), "score": own})

        def mean(values: np.ndarray) -> dict[str, float]:
            interval = mean_interval(values, clusters=rows.clusters, seed=seed)
            return {name: float(value) for name, value in interval._asdict().items()}

        if control is None:
            return cls(table=table, provenance=made, mean=mean(own), what=what)
        other = np.asarray(control, dtype=np.float64)
        return cls(
            table=table.assign(control=other), provenance=made, mean=mean(own), control=mean(other),
            beyond=mean(own - other), what=what,
        )  # fmt: skip

    def figure(self) -> go.Figure:
        """How often each score occurs."""
        import plotly.express as px

        return px.histogram(self.table, x="score", nbins=20)

    def summary(self) -> str:
        """The mean with its interval, beside its control."""
        said = f"{self.what}{': ' if self.what else ''}mean {_said(self.mean)} over {len(self.table)} prompts"
        return f"{said}, control {_said(self.control)}, beyond it {_said(self.beyond)}" if self.control else said


def _said(mean: Mapping[str, float]) -> str:
    return f"{mean['estimate']:.3g} [{mean['low']:.3g}, {mean['high']:.3g}]"
