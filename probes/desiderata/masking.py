"""Desiderata-based component masking (DCM): which heads carry a variable, learned from what must follow if it moves.

After Davies et al. 2023 ("Discovering variable binding circuitry with desiderata") and Prakash et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd

from probes.call_settings import call_settings
from probes.desiderata.result import ComponentMasking
from probes.desiderata.swapping import Swaps
from probes.desiderata.training import Schedule, Trained, train_masks
from probes.paths.groups import sides_of
from probes.paths.places import Head, Place, head_of, label_of
from probes.resampling import interval
from probes.results import Provenance
from probes.scored import with_q
from workbench.argument_checks import read_options
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.stats.bootstrap import mean_interval
from workbench.stats.controls import against_controls


@dataclass(frozen=True)
class MaskingOptions:
    """Options of :func:`component_masking`."""

    heads: Sequence[str] | None = None
    """Labels of the heads a mask may take, such as one group of a circuit; by default all."""
    penalties: Sequence[float] = (0.001, 0.01, 0.1)
    """Prices of a head (lambda); one is chosen on the validation prompts."""
    epochs: int = 2
    learning_rate: float = 0.1
    batch_size: int = 32
    controls: int = 20
    """Random masks of equal size, drawn from all heads of the model; at least ten."""
    max_tokens: int | None = None
    draws: int = 1000
    seed: int = 0
    progress: Progress | None = None


class Parts(NamedTuple):
    """Row numbers: half to train on, a quarter to choose the penalty, a quarter for the report."""

    train: list[int]
    validation: list[int]
    test: list[int]


@method(
    "components",
    group="paths",
    question="Which heads carry a variable from one prompt into another?",
    papers=("Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking",),
    cost="epochs x penalties x one forward and backward pass per batch and model",
    example="--prompts positional.jsonl --prompts object_value.jsonl",
)
def component_masking(
    subject: Any, desiderata: Annotated[Any, As("prompt sets")], position: Place = "last", **options: Any
) -> ComponentMasking:
    """Learn which heads' z, taken from the source prompt at ``position``, turns the base prompt's answer into the
    target; later layers recompute.

    ``desiderata``: name -> prompts (or prompts alone), each row a base prompt with its source as ``contrast`` and the
    target as ``answer`` (see :func:`probes.box_desiderata`). ``subject``: a model, or a pair, in both models of which
    masks are learned. ``position``: a number, ``"last"``, or a column of the prompts (``contrast_<column>`` for the
    source, where it differs). Masks are trained for every penalty, rounded at 0.5, chosen by accuracy on validation
    prompts (ties: more heads), and reported on test prompts beside the floor (no head moved) and random masks of equal
    size. ``options``: see :class:`MaskingOptions`.

    Raises :class:`UserError` for rows without contrast or answer, too few rows to split, and unknown heads.

    Args:
        desiderata: Name and prompts of each variable: prompt, contrast, and as answer what it becomes.
        position: Where heads are taken over: last, a number, or a column of the prompts.
    """
    settings = read_options(MaskingOptions, options)
    named = _named(desiderata)
    models = sides_of(subject)
    first = next(iter(models.values()))
    heads = _candidates(first, settings)
    if not settings.penalties:
        raise UserError("There are no penalties to choose from: give at least one, such as penalties=[0.01].")
    trials = [_Found(name, model, title, rows, position, heads, settings)
             for title, rows in named.items() for name, model in models.items()]  # fmt: skip
    table = pd.DataFrame([trial.row(next((o for o in trials if o.is_twin(trial)), None)) for trial in trials])
    return ComponentMasking(
        table=with_q(table),
        control=f"{settings.controls} random masks of as many heads of the model",
        provenance=Provenance.of(
            "component_masking", models, None, seed=settings.seed, device=str(first.device),
            forward_passes=math.ceil(sum(trial.swaps.passes for trial in trials)),
            backward_passes=sum(trial.swaps.backward for trial in trials),
            settings={**call_settings(settings, desiderata=named), "candidates": len(heads),
                      "split": "50 / 25 / 25 by group", "mixed with": "the running base output"},
        ),
        masks=pd.concat([trial.mask() for trial in trials], ignore_index=True),
        sweep=pd.concat([trial.sweep() for trial in trials], ignore_index=True),
        place=str(position),
    )  # fmt: skip


class _Found:
    """One desideratum in one model: trained, chosen, tested."""

    def __init__(
        self, name: str, model: AdaptedModel, title: str, rows: Prompts, position: Place, heads: list[Head],
        settings: MaskingOptions,
    ) -> None:  # fmt: skip
        self.name, self.model, self.title, self.settings, self.heads = name, model, title, settings, heads
        self.parts = split(rows, settings.seed, title)
        self.swaps = Swaps(model, rows, position, batch_size=settings.batch_size, max_tokens=settings.max_tokens)
        schedule = Schedule(settings.epochs, settings.batch_size, settings.learning_rate, settings.seed)
        self.masks = train_masks(
            self.swaps, self.parts.train, heads, [float(p) for p in settings.penalties], schedule, settings.progress
        )
        hits = self.swaps.correct([mask.heads for mask in self.masks], self.parts.validation)
        self.validation = hits.mean(0)
        self.best = max(
            range(len(self.masks)), key=lambda index: (self.validation[index], len(self.masks[index].heads))
        )

    @property
    def mask_chosen(self) -> Trained:
        return self.masks[self.best]

    def is_twin(self, other: _Found) -> bool:
        """Whether this is the same desideratum in the other model."""
        return self.title == other.title and self.name != other.name

    def row(self, twin: _Found | None) -> dict[str, Any]:
        """The report on the test prompts."""
        heads, settings = self.mask_chosen.heads, self.settings
        random = _random_masks(len(heads), self.model, settings)
        others = [] if twin is None else [twin.mask_chosen.heads]
        hits = self.swaps.correct([heads, (), *random, *others], self.parts.test).astype(float)
        clusters = self.swaps.rows.clusters[self.parts.test]
        bounds = mean_interval(hits[:, 0], clusters=clusters, draws=settings.draws, seed=settings.seed)
        shares = hits[:, 2 : 2 + len(random)].mean(0)
        beside = against_controls(bounds.estimate, shares)
        low, high = interval(shares[:, None])
        return {
            "model": self.name, "desideratum": self.title, "score": bounds.estimate, "low": bounds.low,
            "high": bounds.high, "control": beside.mean, "control_low": float(low[0]), "control_high": float(high[0]),
            "p": beside.p, "floor": hits[:, 1].mean(), "heads": len(heads), "penalty": self.mask_chosen.penalty,
            "validation": self.validation[self.best], "other": hits[:, -1].mean() if others else np.nan,
            "n": len(self.parts.test),
        }  # fmt: skip

    def mask(self) -> pd.DataFrame:
        """The chosen mask, head by head."""
        weights = self.mask_chosen.weights
        return pd.DataFrame({
            "model": self.name, "desideratum": self.title, "layer": [layer for layer, _ in self.heads],
            "head": [head for _, head in self.heads], "taken": (1 - weights).numpy(), "chosen": (weights < 0.5).numpy(),
        })  # fmt: skip

    def sweep(self) -> pd.DataFrame:
        """Every penalty after every epoch."""
        return pd.DataFrame({
            "model": self.name, "desideratum": self.title, "penalty": [mask.penalty for mask in self.masks],
            "epoch": [mask.epoch for mask in self.masks], "validation": self.validation,
            "count": [len(mask.heads) for mask in self.masks],
            "heads": [" ".join(label_of(head) for head in mask.heads) for mask in self.masks],
            "chosen": [index == self.best for index in range(len(self.masks))],
        })  # fmt: skip


def split(rows: Prompts, seed: int, title: str) -> Parts:
    """Whole groups of rows: half, a quarter, a quarter. Raises :class:`UserError` for fewer than eight groups."""
    clusters = rows.clusters
    order = np.random.default_rng(seed).permutation(np.unique(clusters))
    if len(order) < 8:
        raise UserError(
            f"The desideratum {title!r} has {len(rows)} rows in {len(order)} groups: give at least 8 groups, to train, "
            "to choose and to test on."
        )
    edges = [len(order) // 2, len(order) // 2 + len(order) // 4]
    return Parts(*(np.flatnonzero(np.isin(clusters, part)).tolist() for part in np.split(order, edges)))


def _named(desiderata: Any) -> dict[str, Prompts]:
    titled = dict(desiderata) if isinstance(desiderata, Mapping) else {"desideratum": desiderata}
    sets = {str(title): Prompts.of(rows) for title, rows in titled.items()}
    if not sets:
        raise UserError("There are no desiderata: give prompts, or a name for each set of prompts.")
    for title, rows in sets.items():
        for number, row in enumerate(rows):
            if row.contrast is None or not row.answer:
                missing = "source prompt ('contrast')" if row.contrast is None else "target ('answer')"
                raise UserError(f"Desideratum {title!r}, row {number} has no {missing}; every row needs one.")
    return sets


def _candidates(model: AdaptedModel, settings: MaskingOptions) -> list[Head]:
    if settings.heads is None:
        return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    heads = sorted({head_of(label, model) for label in settings.heads})
    if not heads:
        raise UserError("There are no heads to choose from: give labels such as ['L3H5'], or leave heads out for all.")
    return heads


def _random_masks(count: int, model: AdaptedModel, settings: MaskingOptions) -> list[list[Head]]:
    random = np.random.default_rng(settings.seed)
    total = model.n_layers * model.n_heads
    return [
        [divmod(int(index), model.n_heads) for index in random.choice(total, count, replace=False)]
        for _ in range(settings.controls)
    ]
