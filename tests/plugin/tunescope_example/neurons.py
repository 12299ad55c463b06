"""A probe that somebody else wrote: which MLP neurons tuning moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.results import ProbeResult, Provenance
from workbench.methods import method
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.stats.bootstrap import mean_intervals


@dataclass(frozen=True, kw_only=True)
class NeuronShift(ProbeResult):
    """Mean absolute change of each neuron's activation at the last token."""

    title: ClassVar[str] = "Neurons"
    unit: ClassVar[str] = "mean |tuned - base|"

    def figure(self) -> go.Figure:
        """The largest changes."""
        top = self.frame().head(20)
        return go.Figure(go.Bar(x=[f"L{row.layer}N{row.neuron}" for row in top.itertuples()], y=top["score"]))


@method("neurons", group="layers", question="Which neurons did tuning move?", cost="one forward pass of each model")
def neurons(
    pair: Any,
    prompts: Any,
    *,
    top: int = 5,
    norm: Literal["mean", "max"] | str = "mean",
    seed: int = 0,
    progress: Any = None,
) -> NeuronShift:
    """The neurons of every MLP by how far tuning moved them.

    Args:
        top: Neurons kept of each layer.
        norm: Over prompts.
    """
    rows = Prompts.of(prompts)
    recording = record(pair, rows, ["mlp_post"], positions="last", progress=progress)
    tables = []
    for layer in range(pair.tuned.n_layers):
        change = np.abs(
            np.asarray(recording["tuned"]["mlp_post", layer]) - np.asarray(recording["base"]["mlp_post", layer])
        )
        score = getattr(change, norm)(0)
        best = np.argsort(-score)[:top]
        intervals = mean_intervals(change[:, best], seed=seed)
        tables.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "neuron": best,
                    "score": score[best],
                    "low": intervals.low,
                    "high": intervals.high,
                    "control": score.mean(),
                    "q": np.nan,
                }
            )
        )
    made = Provenance.of("neurons", pair, rows, seed=seed)
    return NeuronShift(table=pd.concat(tables, ignore_index=True), control="the layer's mean neuron", provenance=made)
