"""Cross-model activation patching (CMAP) of whole circuits: what the tuned model's heads say, put into the base.

After Prakash et al. 2024. :func:`probes.patching` does it head by head; here groups of heads are moved together, at
their own positions, and judged by the behaviour, in both directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.call_settings import call_settings
from probes.paths.ablation import HeadRuns, Kept, Part, Same, padded_prompts
from probes.paths.groups import Heads, by_place, named, parts_of, random_parts
from probes.resampling import interval
from probes.results import SHARED, ProbeResult, Provenance
from probes.scored import with_q
from workbench.argument_checks import read_options
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.controls import against_controls

WHOLE = "whole circuit"


@dataclass(frozen=True)
class CrossOptions:
    """Options of :func:`cmap`."""

    controls: int = 20
    """Random groups of heads of equal size, drawn without replacement; at least ten."""
    batch_size: int = 16
    max_tokens: int | None = None
    draws: int = 1000
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class CrossPatching(ProbeResult):
    """Behaviour of one model with z of some heads taken from the other, prompt by prompt.

    ``table`` has a row per direction and group: ``score`` is the patched model's metric with its interval, ``control``
    (``control_low``, ``control_high``) that of as many random heads, ``p`` and ``q`` the chance that those move it as
    far towards the other model; ``alone`` and ``other`` are both models unpatched, ``change`` (``change_low``,
    ``change_high``) is paired by prompt, ``share`` the change as a share of the way to the other model.
    """

    heads: dict[str, list[str]]
    """place -> labels."""
    metric: str
    title: ClassVar[str] = "Cross-model patching"
    unit: ClassVar[str] = "metric of the patched model"

    def frame(self) -> pd.DataFrame:
        """The table, best score first. Its cells are directions and groups, so there is no layer column."""
        frame = super().frame().drop(columns="layer")
        first = ["direction", "group", *SHARED]
        return frame[[*first, *frame.columns.difference(first, sort=False)]]

    def figure(self) -> go.Figure:
        """The patched model's metric for each group, beside random heads and the model alone."""
        from workbench.figures.circuits import beside_random

        return beside_random(
            self.table, name="group", group="direction", floor="alone", y=self.metric, title="Heads of the other model"
        )

    def summary(self) -> str:
        whole = self.table[self.table["group"] == WHOLE]
        lines = "; ".join(
            f"{row.direction}: {row.alone:.3g} -> {row.score:.3g} (the other model {row.other:.3g})"
            for row in whole.itertuples()
        )
        return f"{self.metric}, {lines}; control: {self.control}"


@method(
    "cmap",
    group="paths",
    question="What do these heads of the tuned model do in the base, and the reverse?",
    papers=("Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking",),
    needs=Needs(columns=("answer",)),
    cost="one forward pass per group, direction and control",
    example='--heads "last=L1H0,L1H1;-2=L0H0"',
)
def cmap(
    pair: Any,
    prompts: Any,
    heads: Annotated[Heads, As("heads by place")],
    metric: Literal["accuracy", "prob", "logit_diff"] | str = "accuracy",
    **options: Any,
) -> CrossPatching:
    """Copy z of ``heads`` from the tuned model's run into the base's on the same prompts, and the reverse.

    ``heads``: place -> labels, or labels at every position, as in :func:`probes.circuit`; each group is moved by
    itself and all together. z is what a head says: where the output projection was tuned too, the writes differ
    (``probes.patching(what="write")``). ``metric``: accuracy, prob or logit_diff. ``options``: see
    :class:`CrossOptions`. Prompts may differ in length. Raises :class:`UserError` for a single model and unknown heads.
    """
    settings = read_options(CrossOptions, options)
    if not (hasattr(pair, "base") and hasattr(pair, "tuned")):
        raise UserError("Cross-model patching needs both models: give a pair (load_pair), not one model.")
    rows = Prompts.of(prompts)
    parts = parts_of(heads, pair.base)
    groups = {WHOLE: parts, **(by_place(parts) if len(by_place(parts)) > 1 else {})}
    batch = padded_prompts(rows, pair.base)
    alone = {}
    tables, passes = [], 0.0
    for target, source in (("base", "tuned"), ("tuned", "base")):
        theirs = Same(getattr(pair, source), batch)
        run = HeadRuns(getattr(pair, target), rows, theirs, metric, batch_size=settings.batch_size,
                       max_tokens=settings.max_tokens, progress=settings.progress)  # fmt: skip
        random = {
            name: random_parts(some, pair.base, settings.controls, settings.seed) for name, some in groups.items()
        }
        every = [[], *groups.values(), *(draw for draws in random.values() for draw in draws)]
        alone[target] = values = run.scores([Kept(frozenset(some), everything_else=True) for some in every])
        tables.append((f"{source} into {target}", target, source, values))
        passes += run.passes
    table = pd.concat(
        [
            _table(direction, groups, values, alone[source][:, 0], rows.clusters, settings)
            for direction, _, source, values in tables
        ],
        ignore_index=True,
    )
    return CrossPatching(
        table=with_q(table),
        control=f"{settings.controls} random groups with as many heads at each place, drawn without replacement",
        provenance=Provenance.of(
            "cmap", pair, rows, seed=settings.seed, forward_passes=math.ceil(passes),
            settings=call_settings(settings, heads=named(parts), what="z"),
        ),
        heads=named(parts),
        metric=metric,
    )  # fmt: skip


def _table(
    direction: str,
    groups: dict[str, list[Part]],
    values: np.ndarray,
    other: np.ndarray,
    clusters: np.ndarray,
    settings: CrossOptions,
) -> pd.DataFrame:
    """``values`` [prompt, (nothing moved, groups, draws of each group)]."""
    size, start = len(groups), values[:, 0]
    moved = mean_intervals(values[:, 1 : 1 + size], clusters=clusters, draws=settings.draws, seed=settings.seed)
    change = mean_intervals(
        values[:, 1 : 1 + size] - start[:, None], clusters=clusters, draws=settings.draws, seed=settings.seed
    )
    drawn = values[:, 1 + size :].mean(0).reshape(size, settings.controls)
    low, high = interval(drawn.T)
    way = other.mean() - start.mean()
    towards = 1.0 if way >= 0 else -1.0
    beside = [
        against_controls(towards * score, towards * draws) for score, draws in zip(moved.estimate, drawn, strict=True)
    ]
    return pd.DataFrame({
        "direction": direction, "group": list(groups), "score": moved.estimate, "low": moved.low, "high": moved.high,
        "control": drawn.mean(1), "control_low": low, "control_high": high, "p": [test.p for test in beside],
        "change": change.estimate, "change_low": change.low, "change_high": change.high,
        "share": change.estimate / way if way else np.nan, "alone": start.mean(), "other": other.mean(),
        "heads": [len(some) for some in groups.values()], "n": len(start),
    })  # fmt: skip
