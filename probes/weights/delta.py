"""weight_delta: where tuning moved the weights, without running either model."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from probes.results import Provenance
from probes.weights.collect import Collector
from probes.weights.result import CONTROL, WeightDelta
from probes.weights.sources import Opened, open_weights
from probes.weights.stacks import layouts
from probes.weights.tables import expert_table, head_tables, layer_table, module_table
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked


@method(
    "weights",
    group="weights",
    question="Where did the weights change?",
    needs=Needs(folders=True),
    cost="one reading of both models' weights; no forward pass",
)
def weight_delta(
    base: Any,
    tuned: Any = None,
    *,
    k: int = 16,
    exact: bool | None = None,
    progress: Progress | None = None,
) -> WeightDelta:
    """Where the weights changed from ``base`` to ``tuned``: by module, layer, head and expert.

    ``base`` is a pair, or a model given as a folder, hub id or loaded model, and ``tuned`` likewise (an adapter
    too). Folders are read tensor by tensor and neither model is loaded; a LoRA is read in its factors and its
    product never formed; the weights of the layers that it leaves alone stand in the tables with 0. ``k`` leading
    singular values are kept per matrix. ``exact=True`` computes the whole spectrum of every matrix; by default larger
    ones are estimated, with an interval.

    Raises :class:`workbench.errors.UserError` for what is no model or shares no tensor, and
    :class:`workbench.errors.NotSupported` for adapters whose change depends on the input.

    Args:
        exact: Whole spectra of every matrix; by default larger ones are estimated, with an interval.
    """
    watch = progress or Silent()
    opened = open_weights(base, tuned)
    stacks = {opened.stacks.stack_of(name) for name in opened.base}
    collector = Collector(opened.layout, opened.stacks, layouts(opened.config, stacks), k=k, exact=exact)
    unmatched = _collect(opened, collector, watch)
    heads, parts = head_tables(collector.heads, opened.layout.n_heads)
    modules = module_table(collector.modules)
    return WeightDelta(
        table=modules,
        control=CONTROL,
        provenance=Provenance.of("weight_delta", opened.identities()),
        layers=layer_table(collector.modules),
        heads=heads,
        head_parts=parts,
        experts=expert_table(collector.modules),
        factors=pd.DataFrame(collector.factors),
        directions=collector.directions,
        unmatched=unmatched,
        notes=opened.notes + _not_finite(collector),
        no_heads=opened.layout.no_heads,
    )


def _not_finite(collector: Collector) -> tuple[str, ...]:
    """A sentence where a weight of one of the models holds numbers that are none."""
    names = [str(row["name"]) for row in collector.modules if not math.isfinite(row["change2"])]
    if not names:
        return ()
    return (
        f"{len(names)} weights hold NaN or infinite entries in one of the models ({names[0]}), so their change is no "
        "number, and no comparison with them is.",
    )


def _collect(opened: Opened, collector: Collector, watch: Progress) -> tuple[str, ...]:
    """Feed every tensor both sides have; returns the names that only one side has, or in another shape."""
    unmatched = list(opened.unmatched)
    names = [name for name in opened.base if name in opened.tuned or name in opened.factors]
    watch.start("weights", len(names))
    for name in tracked(names, watch):
        unmatched += _collect_one(opened, collector, name)
    watch.finish()
    return tuple(unmatched)


def _collect_one(opened: Opened, collector: Collector, name: str) -> list[str]:
    """One tensor, let go of before the next is read; returns its name where its shapes differ."""
    before = opened.base[name]()
    if name in opened.factors:
        change = opened.factors[name]
        collector.add_factors(name, before.to(change.up.device), change)
        return []
    after = opened.tuned[name]().to(before.device)
    if not before.is_floating_point():
        return []
    if before.shape == after.shape:
        collector.add(name, before, after)
        return []
    if before.shape[1:] == after.shape[1:]:
        shared = min(len(before), len(after))  # a vocabulary that grew: the tokens both have
        collector.add(name, before[:shared], after[:shared])
        return [f"{name}[{shared}:]"]
    return [name]
