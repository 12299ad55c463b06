"""scale_sweep: the update turned up from 0, with the trained task, what is lost and what comes back (SALMONN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interventions.weightspace.swapping import layer_of
from interventions.weightspace.task_vector import TaskVector
from probes.call_settings import call_settings
from probes.partial_updates.bench import Bench
from probes.results import ProbeResult, Provenance
from probes.scored import scored_share, with_q
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts


@dataclass(frozen=True, kw_only=True)
class ScaleSweep(ProbeResult):
    """One row per scale t of base + t * update; ``module`` names it.

    ``score``: share of the trained task's prompts answered right, ``control``: the same with the update under random
    signs, ``q`` of the difference; ``retained``: share right of the prompts of ``retain``, beside
    ``retained_control``; ``verdict``: "base" (t = 0), "lost" where what is retained lies below the base's by more than
    ``margin``, "emergent" where it lies above by more, "held" otherwise (empty without ``retain``).
    ``best_scale``: the t with the largest sum of both shares (of the score alone without ``retain``), the smallest of
    equals. ``shape``: "flat", one t for all layers, or "lines", t at the first layer rising to 1 at the last.
    ``held_out``: scale chosen so on half of the prompts' groups, score, low, high on the other half, ``whole`` (the
    tuned model there); NaN with fewer than four groups.
    """

    best_scale: float
    margin: float
    shape: str
    held_out: dict[str, float]

    title: ClassVar[str] = "Scale of the update"
    unit: ClassVar[str] = "share of the task's prompts answered right"

    def figure(self) -> go.Figure:
        """Both shares over the scale."""
        figure = labelled_points(self.table, "module", title=self.title, unit=self.unit)
        if self.table["retained"].notna().any():
            names = self.table["module"].tolist()
            figure.add_scatter(x=names, y=self.table["retained"].to_numpy(float), mode="lines", name="retained")
        return figure

    def summary(self) -> str:
        row = self.table[self.table["scale"] == self.best_scale].iloc[0]
        lost = self.table[self.table["verdict"] == "lost"]["module"].tolist()
        more = f", retained {row['retained']:.2f}" if not np.isnan(row["retained"]) else ""
        return (
            f"Best of {len(self.table)} scales: t = {self.best_scale:g}, {row['score']:.2f} [{row['low']:.2f}, "
            f"{row['high']:.2f}]{more}; lost at {', '.join(lost) or 'none'}; chosen on half of the prompts t = "
            f"{self.held_out['scale']:g} has {self.held_out['score']:.2f} on the other half (tuned model "
            f"{self.held_out['whole']:.2f}). Control: {self.control}."
        )


@method(
    "scale-sweep",
    group="weights",
    question="At which scale of the update is the task learnt and nothing else lost?",
    papers=(
        "SALMONN: Towards Generic Hearing Abilities for Large Language Models",
        "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
    ),
    needs=Needs(columns=("answer",)),
    cost="two forward passes per prompt and scale",
)
def scale_sweep(
    pair: Any,
    prompts: Any,
    *,
    scales: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
    shape: Literal["flat", "lines"] = "flat",
    retain: Annotated[Any, As("prompts")] = None,
    margin: float = 0.05,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScaleSweep:
    """Ask base + t * (tuned - base) the trained task and what the base could do, for every scale t.

    Works for full models and every adapter whose change of weights can be read. With ``shape="lines"`` it is the search
    of LiNeS (Wang et al. 2024): the update is scaled by t + (1 - t) l / (L - 1) at layer l of L, and by t outside the
    layers; ``interventions.LayerScale(a=t, b=1 - t)`` is that model. Its control gives the layers the same factors in
    reverse order, so that the depth alone differs.

    Args:
        pair: Base and tuned model.
        prompts: Rows with an answer: the trained task.
        scales: The scales; 1 is the tuned model, and 0 the base where the shape is flat.
        shape: flat: one scale for all; lines: rising with depth from the scale to 1.
        retain: Prompts with answers of abilities that should not be lost.
        margin: Difference of shares that counts as lost or emergent.
        seed: Of the control's signs and the intervals.

    Raises:
        UserError: No scales, prompts without answers or too few.
    """
    check_pair(pair)
    if not scales:
        raise UserError("There is no scale to try: give some, as 0, 0.5 and 1.")
    rows = Prompts.of(prompts)
    bench = Bench.of(pair.base, rows, retain, batch_size, seed)
    update = TaskVector.from_pair(pair)
    watch = progress or Silent()
    watch.start("scales", len(scales))
    base_retained = bench.retained(None)
    table, right = [], []
    for scale in tracked(scales, watch):
        vector, controls = _scaled(update, pair.base, float(scale), shape, seed)
        right.append(bench.right(vector))
        row = bench.row(vector, controls, right[-1])
        verdict = _verdict(1.0 if shape == "lines" else scale, row["retained"] - base_retained, margin)
        table.append({"module": f"t = {scale:g}", "scale": float(scale), **row, "verdict": verdict})
    whole = bench.right(update)
    watch.finish()
    frame = pd.DataFrame(table)
    both = frame["score"] + frame["retained"].fillna(0.0)
    return ScaleSweep(
        table=with_q(frame, keep_p=False),
        control="the same scale of the update under random signs, entry by entry" if shape == "flat" else
        "the same factors given to the layers in reverse order",
        provenance=Provenance.of(
            "scale_sweep", pair, rows, seed=seed, forward_passes=bench.passes,
            settings=call_settings(None, retain=None if retain is None else Prompts.of(retain)),
        ),
        best_scale=float(frame["scale"][both >= both.max() - 1e-12].min()),
        margin=margin,
        shape=shape,
        held_out=_held_out(frame, np.stack(right), whole, bench),
    )  # fmt: skip


def _scaled(
    update: TaskVector, base: AdaptedModel, scale: float, shape: str, seed: int
) -> tuple[TaskVector | None, list[TaskVector]]:
    """The scaled update (None: the base), and its control."""
    if shape == "flat":
        return (None, []) if not scale else (update * scale, [(update * scale).sign_shuffled(seed)])

    def at(name: str, *, reverse: bool = False) -> float:
        layer = layer_of(name, base)
        if layer is None:
            return scale
        share = layer / max(1, base.n_layers - 1)
        return scale + (1 - scale) * (1 - share if reverse else share)

    return update.by_name(at), [update.by_name(partial(at, reverse=True))]


def _held_out(frame: pd.DataFrame, right: np.ndarray, whole: np.ndarray, bench: Bench) -> dict[str, float]:
    """The best scale by half of the groups, and its score on the other half."""
    clusters = bench.task.clusters if bench.task.clusters is not None else np.arange(right.shape[1])
    groups = np.random.default_rng(bench.seed).permutation(np.unique(clusters))
    if len(groups) < 4:
        return dict.fromkeys(("scale", "score", "low", "high", "whole"), float("nan"))
    choosing = np.isin(clusters, groups[: len(groups) // 2])
    value = right[:, choosing].mean(1) + frame["retained"].fillna(0.0).to_numpy()
    best = int(np.flatnonzero(value >= value.max() - 1e-12)[np.argmin(frame["scale"][value >= value.max() - 1e-12])])
    interval = scored_share(right[best, ~choosing], seed=bench.seed, clusters=clusters[~choosing])
    return {"scale": float(frame["scale"].iloc[best]), **interval, "whole": float(whole[~choosing].mean())}


def _verdict(scale: float, change: float, margin: float) -> str:
    if scale == 0 or np.isnan(change):
        return "base" if scale == 0 else ""
    return "lost" if change < -margin else "emergent" if change > margin else "held"
