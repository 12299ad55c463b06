"""tuning_trial: a model trained in each selection of its weights, beside random selections of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from interventions.training.examples import answer_loss, examples_of
from interventions.training.masked import MaskedTraining
from interventions.training.selection import RULES, Masks, Selector, trainable_names
from interventions.training.trainer import Schedule
from interventions.weightspace.selection_scores import top_mask
from interventions.weightspace.swapping import base_parameters, swapped
from probes.call_settings import call_settings
from probes.grafting.tasks import Task
from probes.halves import half_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.series.answers import FEWEST, Answers
from probes.weights.naming import place_of
from workbench.argument_checks import check_subject
from workbench.errors import UserError, unknown_name
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.typing import Tensor


@dataclass(frozen=True, kw_only=True)
class TuningTrial(ProbeResult):
    """What a training learns and forgets when only one selection of the weights may move.

    ``table``: ``module`` is the selection ("all": every matrix inside the layers); ``score`` the share of held-out
    prompts that the trained model answers right, ``control`` the mean of trainings of random entries, as many in every
    tensor, ``q`` of the difference; ``retained`` the share right on ``retain`` (NaN without), beside
    ``retained_before``; ``share`` of the entries that were trained, ``hit_rate`` the part of all squared change of the
    full training that lies in the selection (chance: ``share``), ``loss`` of the last step in nats.
    """

    untrained: float
    maps: pd.DataFrame
    """module (the selection), layer, tensor, free: share of the tensor's entries that were trained: the map from before
    the training (of "free_rows": what is free, the rest is kept)."""

    title: ClassVar[str] = "Training in a selection"
    unit: ClassVar[str] = "share of held-out prompts answered right"

    def summary(self) -> str:
        parts = self.table[self.table["module"] != "all"].sort_values("score", kind="stable")
        best = parts.iloc[-1]
        return (
            f"Of {len(parts)} selections {best['module']} ({best['share']:.1%} of the weights) learns most: "
            f"{best['score']:.2f} [{best['low']:.2f}, {best['high']:.2f}] of {int(best['n'])} held-out prompts, random "
            f"{best['control']:.2f}; untrained {self.untrained:.2f}. Control: {self.control}."
        )


@method(
    "tuning-trial",
    group="weights",
    question="Does training only these weights learn the task, better than random ones, and forget less?",
    papers=(
        "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised "
        "Fine-Tuning",
        "HFT: Half Fine-Tuning for Large Language Models",
        "Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation",
        "TR-PTS: Task-Relevant Parameter and Token Selection for Efficient Tuning",
        "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation",
        "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels",
        "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning",
        "Few-shot Image Generation via Adaptation-Aware Kernel Modulation",
    ),
    needs=Needs(columns=("answer",)),
    cost="a training per rule and per random draw, and one of everything",
    example="--rules fisher --epochs 1 --draws 1",
)
def tuning_trial(  # noqa: PLR0913
    subject: Any,
    prompts: Any,
    *,
    rules: Sequence[str] = ("reduced_magnitude", "small_weights", "fisher", "half", "budget"),
    share: Annotated[float, Within(1e-6, 1)] = 0.05,
    retain: Annotated[Any, As("prompts")] = None,
    refresh: int = 0,
    epochs: int = 3,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    draws: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> TuningTrial:
    """Train the base on half of the prompts (whole groups) in each selection, ask the other half, and undo it.

    Rule "free_rows" is the check of AdAM's map, made by a short probe adaptation before the real one: the free rows are
    trained, beside as many random entries.

    Args:
        subject: A model, or a pair, whose base is trained.
        prompts: Rows with an answer: the task to learn.
        rules: How entries are chosen, before training: names of :data:`interventions.training.selection.RULES`.
        share: Share of each matrix's entries; of the backward pass's cost for "budget".
        retain: Prompts with answers of what the base can do already.
        refresh: Steps until the entries are chosen anew; 0: never.
        batch_size: Prompts per step and per forward pass.
        draws: Random selections per rule.
        seed: Of the split, the order of training and the random selections.

    Raises:
        UserError: An unknown rule, prompts without answers or too few.
    """
    check_subject(subject)
    for rule in rules:
        if rule not in RULES:
            raise unknown_name("selection", rule, RULES)
    if draws < 1:
        raise UserError("The control needs at least one random selection: give draws of 1 or more.")
    model: AdaptedModel = getattr(subject, "base", subject)
    rows = Prompts.of(prompts)
    bench = _Bench.of(
        model, rows, retain, Schedule(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    )
    watch = progress or Silent()
    watch.start("trainings", (1 + draws) * len(rules) + 1)
    untrained = bench.asked_now()
    whole = bench.trained("all", 1.0, 0)
    watch.advance()
    table = [bench.row("all", whole, [], whole.moved, untrained)]
    maps: list[dict[str, Any]] = []
    for rule in rules:
        run = bench.trained(rule, share, refresh)
        watch.advance()
        random = [bench.trained_like(run.masks, draw) for draw in range(draws)]
        watch.advance(draws)
        table.append(bench.row(rule, run, random, whole.moved, untrained))
        maps += _map(rule, run.masks)
    watch.finish()
    return TuningTrial(
        table=with_q(table, keep_p=False),
        control=f"the same training of random entries, as many in every tensor ({draws} draws)",
        provenance=Provenance.of(
            "tuning_trial", model, rows, seed=seed,
            settings=call_settings(None, retain=None if retain is None else Prompts.of(retain)),
        ),
        untrained=float(untrained[0].mean()),
        maps=pd.DataFrame(maps),
    )  # fmt: skip


def _map(rule: str, masks: Masks) -> list[dict[str, Any]]:
    places = {name: place_of(name) for name in masks}
    return [
        {"module": rule, "layer": places[name].layer, "tensor": places[name].module, "free": float(mask.float().mean())}
        for name, mask in masks.items()
    ]


@dataclass(frozen=True)
class _Run:
    """One training: right answers row by row on the held-out prompts and on those to retain."""

    masks: Masks
    right: np.ndarray
    retained: np.ndarray
    moved: dict[str, Tensor]
    """Squared change of every entry, of the training of everything."""
    loss: float


@dataclass
class _Bench:
    model: AdaptedModel
    train: Prompts
    answers: Answers
    report: Task
    retain: tuple[Answers, Task] | None
    schedule: Schedule

    @classmethod
    def of(cls, model: AdaptedModel, rows: Prompts, retain: Any, schedule: Schedule) -> _Bench:
        inside = half_of(rows.clusters, schedule.seed)
        if min(int(inside.sum()), int((~inside).sum())) < FEWEST:
            raise UserError(
                f"{len(rows)} prompts in {len(set(rows.clusters))} groups are too few: either side needs {FEWEST}."
            )
        answers = Answers.of(model, rows[np.flatnonzero(~inside)], 32)
        later = None if retain is None else Answers.of(model, retain, 32)
        both = None if later is None else (later, later.task())
        return cls(model, rows[np.flatnonzero(inside)], answers, answers.task(), both, schedule)

    def asked_now(self) -> tuple[np.ndarray, np.ndarray]:
        """Right answers of the model as it stands."""
        right = self.answers.outcome(self.report, None).right.astype(float)
        if self.retain is None:
            return right, np.array([np.nan])
        return right, self.retain[0].outcome(self.retain[1], None).right.astype(float)

    def trained(self, rule: str, share: float, refresh: int) -> _Run:
        """Train by a rule, ask, and put the weights back."""
        examples = examples_of(self.train, self.model.tokenizer, end=False)
        selector = Selector(self.model, examples, rule, share, self.schedule.batch_size, self.schedule.seed)
        return self._run(selector.masks(), examples, refresh, selector)

    def trained_like(self, masks: Masks, draw: int) -> _Run:
        """Train random entries, as many in every tensor as ``masks`` has."""
        generator = torch.Generator().manual_seed(self.schedule.seed * 31 + draw)
        random = {
            name: top_mask(torch.rand(mask.shape, generator=generator), float(mask.float().mean()))
            for name, mask in masks.items()
            if bool(mask.any())
        }
        return self._run(random, examples_of(self.train, self.model.tokenizer, end=False), 0, None)

    def _run(self, masks: Masks, examples: Any, refresh: int, selector: Selector | None) -> _Run:
        parameters = base_parameters(self.model.hf)
        held = {name: parameters[name] for name in masks}
        with swapped({parameter: parameter.detach().clone() for parameter in held.values()}):
            before = {name: parameter.detach().clone() for name, parameter in held.items()}
            training = MaskedTraining(self.model, masks, self.schedule)
            again = None if selector is None or not refresh else selector.masks
            history = training.run(examples, answer_loss, refresh=refresh, select=again)
            right, retained = self.asked_now()
            whole = selector is not None and selector.rule == "all"
            moved = {
                name: (held[name].detach().float() - before[name].float()).square() for name in (held if whole else ())
            }
        return _Run(training.masks, right, retained, moved, history[-1]["loss"])

    def row(
        self, rule: str, run: _Run, random: list[_Run], moved: dict[str, Tensor], before: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, Any]:
        clusters = self.report.clusters if self.report.clusters is not None else np.arange(len(run.right))
        other = np.mean([draw.right for draw in random], 0) if random else before[0]
        squares = sum(float(square.sum()) for square in moved.values())
        hit = sum(float(moved[name][run.masks[name].to(moved[name].device)].sum()) for name in run.masks)
        names = trainable_names(self.model)
        total = sum(base_parameters(self.model.hf)[name].numel() for name in names)
        entries = sum(int(mask.sum()) for mask in run.masks.values())
        return {
            "module": rule,
            **beside_control(run.right, other, clusters, seed=self.schedule.seed, share=True),
            "retained": float(run.retained.mean()),
            "retained_before": float(before[1].mean()),
            "retained_control": float(np.mean([draw.retained.mean() for draw in random])) if random else np.nan,
            "share": entries / total,
            "hit_rate": hit / squares if squares else np.nan,
            "entries": entries,
            "loss": run.loss,
            "n": len(run.right),
        }
