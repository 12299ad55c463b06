"""Finding the knob: which layer, which direction, how it is set, and whether other models have it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from probes.call_settings import call_settings
from probes.knob.intents import IntentPairs, both, intent_pairs
from probes.knob.layers import LayerSearch, PatchedHeads, Thresholds, search_layers
from probes.knob.result import Knob
from probes.knob.subspace import Training, mean_difference, train_subspace
from probes.knob.trial import Axis, Trial, best_settings, flips, natural_settings, random_bases, sweep
from probes.results import Provenance
from probes.scored import scored_share
from workbench.argument_checks import check_pair
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Tensor

CONTROL = "random subspaces of the same rank, the same for every layer"
LayerChoice = Literal["search", "all"] | int | float | Sequence[int | float]


@dataclass(frozen=True)
class Setup:
    """How the pairs are used. ``keep_together`` names a column whose values never straddle train and held-out
    pairs (the relation of a fact, say)."""

    held_out: float = 0.3
    """The share of pairs that judge and are not trained on."""
    keep_together: str | None = None
    """A column whose values never straddle train and held-out pairs."""
    batch_size: int = 32
    draws: int = 10
    """Random subspaces of the control."""
    reach: float = 3.0
    """The sweep goes this many half-gaps of the two intents' natural means to each side of their middle."""
    values: int = 13
    """Values that the coordinate is set to."""
    search_pairs: int = 64
    """Pairs that choose the layer."""
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1 or self.draws < 1 or self.values < 2:
            raise UserError(f"{self}: held_out is a share between 0 and 1, draws at least 1, values at least 2.")


@method(
    "knob",
    gives=("knob", "directions"),
    group="directions",
    question="Which direction decides between two intents?",
    papers=("Controllable Context Sensitivity and the Knob Behind It",),
    needs=Needs(columns=("group", "intent", "answer")),
    expands={"setup": Setup, "training": Training},
    cost="layers x steps trainings of a subspace, then one pass per held-out pair and value",
)
def find_knob(
    pair: Any,
    prompts: Prompts | Sequence[Any],
    *,
    layers: LayerChoice = "search",
    training: Training | None = None,
    setup: Setup | None = None,
    others: Mapping[str, AdaptedModel] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Knob:
    """The direction at the last token whose coordinate decides between two intents (Minder, Du et al. 2024).

    ``prompts`` are rows with columns ``group`` (context and query), ``intent`` (two values, "context" and
    "prior" say) and ``answer``. Pairs count where the tuned model is right under both intents, at the first token in
    which the answers differ. A subspace is trained by interchange at each candidate layer on some pairs; the
    best layer there is reported on the held-out pairs: swaps, the coordinate's natural distribution, set values,
    the same in the base and in ``others`` (same width), each beside random subspaces; and the difference of means.

    ``layers``: "search" (where patched attention carries the intent over), "all", or indices or fractions.
    Raises :class:`UserError` when the tuned model is no better at the pairs than the base ("nothing to
    localize") or too few pairs are left.
    """
    check_pair(pair, prompts)
    training, setup, progress = training or Training(), setup or Setup(), progress or Silent()
    rows = Prompts.of(prompts)
    pairs = intent_pairs(rows, pair.tuned)
    known, skill = _known_pairs(pair, pairs, setup)
    train_numbers, test_numbers = _split(known, setup, seed)
    train = Trial.of("tuned", pair.tuned, known.choose(train_numbers), setup.batch_size)
    trainer = Trial.of("tuned", pair.tuned, train.pairs, training.batch_size)
    test = Trial.of("tuned", pair.tuned, known.choose(test_numbers), setup.batch_size)
    searches, candidates = _candidates(layers, train, setup)
    controls = random_bases(pair.tuned.d_model, training.rank, setup.draws, seed)
    tried = [_at_layer(layer, train, trainer, test, training, controls, seed, progress) for layer in candidates]
    best = max(tried, key=lambda candidate: (candidate.train_score, -candidate.loss))
    models = {"base": pair.base, **(others or {})}
    trials = [test, *(Trial.of(name, model, test.pairs, setup.batch_size) for name, model in models.items())]
    parts = _described(best, train, trials, controls, setup, seed)
    passes = sum(trial.last.passes for trial in (train, trainer, *trials))
    return Knob(
        table=_table(tried),
        control=f"{CONTROL} ({setup.draws} draws)",
        provenance=Provenance.of(
            "find_knob",
            {"base": pair.base, "tuned": pair.tuned, **(others or {})},
            known.rows,
            seed=seed,
            device=str(pair.tuned.device),
            forward_passes=passes + skill.pop("passes"),
            backward_passes=training.steps * len(candidates),
            settings=call_settings(None, prompts=rows, training=training, setup=setup),
        ),
        layer=best.layer,
        intents=known.intents,
        counts={**known.counts, "train": len(train.pairs), "held_out": len(test.pairs)},
        skill=skill,
        search=_search_table(searches),
        **parts,
    )


@dataclass(frozen=True)
class _Found:
    layer: int
    basis: Float[Tensor, "d_model rank"]
    loss: float
    train_score: float
    swapped: np.ndarray
    control: np.ndarray
    means: np.ndarray
    patched: np.ndarray
    cosine: float


def _known_pairs(pair: Any, pairs: IntentPairs, setup: Setup) -> tuple[IntentPairs, dict[str, Any]]:
    """The pairs that the tuned model gets right both ways, and how good both models are."""
    tuned = Trial.of("tuned", pair.tuned, pairs, setup.batch_size)
    base = Trial.of("base", pair.base, pairs, setup.batch_size)
    right = both(tuned.right())
    skill = {"tuned": float(right.mean()), "base": float(both(base.right()).mean())}
    if skill["tuned"] <= skill["base"]:
        raise UserError(
            f"There is nothing to localize: the tuned model answers {skill['tuned']:.0%} of the {len(pairs)} pairs "
            f"right under both intents, the base model {skill['base']:.0%}; give prompts that tuning helped with."
        )
    known = pairs.choose(np.flatnonzero(right), tuned_wrong=int((~right).sum()))
    if len(known) < 4:
        raise UserError(
            f"Only {len(known)} of {len(pairs)} pairs are answered right under both intents by the tuned model; "
            "at least 4 are needed to train on some and test on others: give more pairs."
        )
    return known, {**skill, "passes": tuned.last.passes + base.last.passes}


def _split(pairs: IntentPairs, setup: Setup, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the held-out pairs; what must stay together does."""
    column = setup.keep_together
    first = [pairs.rows[2 * pair] for pair in range(len(pairs))]
    blocks = [str(row.columns.get(column)) if column else str(n) for n, row in enumerate(first)]
    names = sorted(set(blocks))
    if len(names) < 2:
        raise UserError(
            f"All pairs have one value in the column {column!r}, so none can be held out; name another column."
        )
    shuffled = np.random.default_rng(seed).permutation(names)
    count = min(len(names) - 1, max(1, round(setup.held_out * len(names))))
    away = np.isin(blocks, shuffled[:count])
    return np.flatnonzero(~away), np.flatnonzero(away)


def _candidates(layers: LayerChoice, train: Trial, setup: Setup) -> tuple[dict[str, LayerSearch], list[int]]:
    """Layers to train at, and the searches that chose them (one per direction of the flip)."""
    n_layers = train.last.model.n_layers
    if layers == "all":
        return {}, list(range(n_layers))
    if layers != "search":
        return {}, resolve_layers(layers, n_layers)
    searches = {}
    first, second = train.pairs.intents
    few = 2 * min(len(train.pairs), setup.search_pairs)
    for start, name in ((1, f"{second} -> {first}"), (0, f"{first} -> {second}")):
        curves = PatchedHeads(train.last, train.pairs, torch.arange(start, few, 2))
        searches[name] = search_layers(curves, n_layers, setup.thresholds)
    carried = sorted({layer for search in searches.values() for layer in search.layers})
    if not carried:
        return searches, list(range(n_layers))
    return searches, list(range(carried[0], min(carried[-1] + 2, n_layers)))


def _at_layer(
    layer: int,
    train: Trial,
    trainer: Trial,
    test: Trial,
    training: Training,
    controls: list[Tensor],
    seed: int,
    progress: Progress,
) -> _Found:
    basis, losses = train_subspace(trainer.last, train.pairs, layer, training, seed, progress)
    means = mean_difference(train.ends(layer), training.rank)
    return _Found(
        layer=layer,
        basis=basis,
        loss=float(np.mean(losses[-20:])),
        train_score=float(train.swapped(layer, basis).mean()),
        swapped=test.swapped(layer, basis),
        control=np.mean([test.swapped(layer, control) for control in controls], axis=0),
        means=test.swapped(layer, means),
        patched=test.patched(layer),
        cosine=float(torch.linalg.svdvals(basis.T @ means)[0]),
    )


def _table(tried: Sequence[_Found]) -> pd.DataFrame:
    """One row per candidate layer, on the held-out pairs."""
    q = q_values(np.array([paired_permutation(attempt.swapped - attempt.control).p for attempt in tried]))
    rows = []
    for trial in tried:
        rows.append(
            {
                "layer": trial.layer,
                **scored_share(trial.swapped),
                "control": float(trial.control.mean()),
                "means": float(trial.means.mean()),
                "patched": float(trial.patched.mean()),
                "cosine": trial.cosine,
                "train_score": trial.train_score,
                "loss": trial.loss,
            }
        )
    return pd.DataFrame(rows).assign(q=q)


def _described(
    best: _Found, train: Trial, trials: list[Trial], controls: list[Tensor], setup: Setup, seed: int
) -> dict[str, Any]:
    """Natural settings, dose and response, flips and swaps of the best knob in every model."""
    layer = best.layer
    axis = Axis.through(best.basis, train.ends(layer))
    natural = natural_settings(train, layer, axis)
    means = natural.groupby("intent", sort=False)["value"].mean()
    middle, half_gap = float(means.mean()), float(abs(means.iloc[0] - means.iloc[1])) / 2
    values = [middle + half_gap * t for t in np.linspace(-setup.reach, setup.reach, setup.values).tolist()]
    levels = best_settings(sweep(train, layer, axis, values, []), natural)
    curves = [sweep(trial, layer, axis, values, controls, seed) for trial in trials]
    flipped = [flips(trial, layer, axis, levels, controls, seed) for trial in trials]
    settled = [natural_settings(trial, layer, axis) for trial in trials]
    return {
        "direction": axis.basis,
        "line": axis.line,
        "offset": axis.offset,
        "settings": levels,
        "natural": pd.concat(settled, ignore_index=True),
        "sweep": pd.concat(curves, ignore_index=True),
        "flips": pd.concat(flipped, ignore_index=True),
        "swaps": _swaps(trials, layer, best.basis, controls, seed),
    }


def _swaps(
    trials: list[Trial], layer: int, basis: Float[Tensor, "d_model rank"], controls: list[Tensor], seed: int
) -> pd.DataFrame:
    """Interchange in every model along the same subspace: model, score, low, high, control."""
    rows = []
    for trial in trials:
        control = np.mean([trial.swapped(layer, control).mean() for control in controls])
        interval = scored_share(trial.swapped(layer, basis), seed=seed)
        rows.append({"model": trial.model, **interval, "control": float(control)})
    return pd.DataFrame(rows)


def _search_table(searches: Mapping[str, LayerSearch]) -> pd.DataFrame:
    """Every set of layers the search ran: direction, layers, probability, whether it is the answer."""
    rows = [
        {"direction": name, "layers": ",".join(map(str, layers)), "probability": top, "chosen": layers == search.layers}
        for name, search in searches.items()
        for layers, top in search.steps
    ]
    return pd.DataFrame(rows, columns=["direction", "layers", "probability", "chosen"])
