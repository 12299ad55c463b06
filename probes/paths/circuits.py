"""The test of a circuit: faithful, complete, minimal; beside random circuits, in one model or in both.

After Wang et al. 2023 and Prakash et al. 2024, whose claim is that the base model's circuit, run in the fine-tuned
model, keeps most of its behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd

from probes.call_settings import call_settings
from probes.paths.ablation import HeadRuns, Kept, Part, mean_ablation
from probes.paths.circuit_result import CircuitTest
from probes.paths.groups import Heads, by_place, named, parts_of, random_parts, sides_of
from probes.paths.minimality import needed
from probes.resampling import interval
from probes.results import Provenance
from probes.scored import with_q
from workbench.argument_checks import read_options
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.stats.bootstrap import mean_intervals, ratio_intervals
from workbench.stats.controls import against_controls


@dataclass(frozen=True)
class CircuitOptions:
    """Options of :func:`circuit`."""

    reference: Annotated[Any, As("prompts")] = None
    """Prompts whose mean stands in for an ablated head, of the same length and with other queries; by default the
    prompts themselves."""
    controls: int = 20
    """Random circuits of equal size, drawn without replacement; at least ten."""
    parts: int = 20
    """Random parts K of the circuit for its completeness; 0 for the groups alone."""
    minimality: bool = False
    """Whether to test every head after its most redundant companions (about n squared / 2 further runs)."""
    redundant: float = 0.3
    """The share of companions that is removed first."""
    threshold: float = 0.01
    """The relative drop from which a head is needed."""
    batch_size: int = 16
    max_tokens: int | None = None
    draws: int = 1000
    seed: int = 0
    progress: Progress | None = None


@method(
    "circuit",
    group="paths",
    question="Do these heads alone do what the whole model does?",
    papers=(
        "Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking",
        "Circuit Component Reuse Across Tasks in Transformer Language Models",
    ),
    needs=Needs(columns=("answer",)),
    cost="one forward pass per circuit and control",
    example='--heads "last=L1H0,L1H1;-2=L0H0"',
)
def circuit(
    subject: Any,
    prompts: Any,
    heads: Annotated[Heads, As("heads by place")],
    metric: Literal["accuracy", "prob", "logit_diff"] | str = "accuracy",
    **options: Any,
) -> CircuitTest:
    """Run only ``heads`` and mean-ablate all others, at every position; compare with the whole model.

    ``subject``: a model, or a pair, in both models of which the same circuit is tested. ``heads``: place -> labels
    (``{"last": ["L9H3"], "query_box": ["L4H1"]}``; a place is a number, ``"last"``, ``"all"``, or a column of the
    prompts), or labels alone, kept at every position. MLPs stay as they are. ``metric``: accuracy (the answer is the
    first choice), prob or logit_diff. Prompts of one length are ablated to the mean at each position, others to
    the mean over their tokens, each prompt's first left alone. A model of the pair that does not show the behaviour has
    nothing a circuit could be faithful to: it is left out before anything else runs, its line says F(M) alone.
    ``options``: see :class:`CircuitOptions`.

    Raises :class:`UserError` for heads the model lacks, and when no model shows the behaviour.
    """
    settings = read_options(CircuitOptions, options)
    models = sides_of(subject)
    rows = Prompts.of(prompts)
    reference = rows if settings.reference is None else Prompts.of(settings.reference)
    parts = parts_of(heads, next(iter(models.values())))
    random = random_parts(parts, next(iter(models.values())), settings.controls, settings.seed)
    whole, complete, minimal = [], [], []
    runs = {
        name: mean_ablation(model, rows, reference, metric, batch_size=settings.batch_size,
                            max_tokens=settings.max_tokens, progress=settings.progress)
        for name, model in models.items()
    }  # fmt: skip
    lacking = _lacking(runs)
    for name, run in runs.items():
        if name in lacking:
            continue
        whole.append(_faithfulness(name, run, parts, random, settings))
        complete.append(_completeness(run, parts, settings).assign(model=name))
        if settings.minimality:
            minimal.append(needed(run, parts, settings.redundant, settings.threshold, settings.seed).assign(model=name))
    passes = sum(run.passes for run in runs.values())
    table = pd.DataFrame(whole)
    table = with_q(table)
    if lacking:
        table = pd.concat([table, pd.DataFrame([{"model": name, "full": value} for name, value in lacking.items()])],
                          ignore_index=True)  # fmt: skip
    return CircuitTest(
        table=table,
        control=f"{settings.controls} random circuits with as many heads at each place, drawn without replacement",
        provenance=Provenance.of(
            "circuit", models, rows, seed=settings.seed, device=str(next(iter(models.values())).device),
            forward_passes=math.ceil(passes),
            settings={**call_settings(settings, heads=named(parts), reference=reference),
                      "reference_is_the_prompts": settings.reference is None, "ablation": "mean by position",
                      "mlps": "intact"},
        ),
        heads=named(parts),
        random=[named(drawn) for drawn in random],
        metric=metric,
        completeness=pd.concat(complete, ignore_index=True),
        minimality=pd.concat(minimal, ignore_index=True) if minimal else None,
    )  # fmt: skip


def _lacking(runs: dict[str, HeadRuns]) -> dict[str, float]:
    """The models that do not show the behaviour, with their metric; found before heads are ablated."""
    full = {name: float(run.scores([Kept(frozenset(), everything_else=True)]).mean()) for name, run in runs.items()}
    lacking = {name: value for name, value in full.items() if not value > 0}
    if len(lacking) == len(full):
        name, value = next(iter(lacking.items()))
        raise UserError(
            f"The {name} model has {runs[name].metric} {value:.3g} on these prompts, so there is no behaviour a "
            "circuit could be faithful to: use prompts it answers."
        )
    return lacking


def _faithfulness(
    name: str, run: HeadRuns, parts: Sequence[Part], random: Sequence[Sequence[Part]], settings: CircuitOptions
) -> dict[str, Any]:
    whole = Kept(frozenset(), everything_else=True)
    variants = [whole, Kept(frozenset(parts)), Kept(frozenset()), *(Kept(frozenset(drawn)) for drawn in random)]
    values = run.scores(variants)
    full = values[:, 0]
    clusters, draws, seed = run.prompts.clusters, settings.draws, settings.seed
    cell = ratio_intervals(values[:, 1:2], full, clusters=clusters, draws=draws, seed=seed).cell(0)
    shares = values[:, 3:].mean(0) / full.mean()
    beside = against_controls(cell.estimate, shares)
    low, high = interval(shares[:, None])
    return {
        "model": name, "score": cell.estimate, "low": cell.low, "high": cell.high, "control": beside.mean,
        "control_low": float(low[0]), "control_high": float(high[0]), "p": beside.p, "full": full.mean(),
        "circuit": values[:, 1].mean(), "empty": values[:, 2].mean(), "heads": len(parts), "n": len(full),
    }  # fmt: skip


def _completeness(run: HeadRuns, parts: Sequence[Part], settings: CircuitOptions) -> pd.DataFrame:
    """F(C without K) against F(M without K) for each group and for random parts K."""
    rng = np.random.default_rng(settings.seed)
    groups: list[tuple[str, list[Part]]] = list(by_place(parts).items())
    for draw in range(settings.parts if len(parts) > 1 else 0):
        size = int(rng.integers(1, len(parts)))
        groups.append((f"random {draw}", [parts[index] for index in rng.choice(len(parts), size, replace=False)]))
    variants = [Kept(frozenset(parts) - set(some)) for _, some in groups]
    variants += [Kept(frozenset(some), everything_else=True) for _, some in groups]
    values = run.scores(variants)
    inside, outside = values[:, : len(groups)], values[:, len(groups) :]
    intervals = mean_intervals(
        inside - outside, clusters=run.prompts.clusters, draws=settings.draws, seed=settings.seed
    )
    return pd.DataFrame({
        "removed": [name for name, _ in groups], "size": [len(some) for _, some in groups],
        "score": np.abs(intervals.estimate), "difference": intervals.estimate,
        "low": intervals.low, "high": intervals.high,
        "circuit": inside.mean(0), "full": outside.mean(0),
    })  # fmt: skip
