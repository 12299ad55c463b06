"""One learned coefficient per update and tensor (aTLAS, Zhang et al. 2024), beside one coefficient per update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from interventions.weightspace.swapping import base_parameters, find_parameter
from interventions.weightspace.task_vector import TaskVector
from probes.grafting.tasks import Task
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.selection_scores.evidence import differentiable
from probes.series.answers import Answers, pair_members, updates_of
from probes.weights.naming import place_of
from workbench.argument_checks import check_pair
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor

_DECAY = 0.1
_CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class LearnedScaling(ProbeResult):
    """Base, learned sums and their controls on held-out prompts.

    ``table``: ``module`` is base, ``one each`` (a coefficient per update) or ``per tensor`` (one per update and
    tensor); ``score`` the share of right answers, ``control`` that of the same training with every update's signs
    shuffled, ``q`` of the difference. ``coefficients``: update, layer, module, learned coefficient.
    """

    coefficients: pd.DataFrame

    title: ClassVar[str] = "Updates with learned coefficients"
    unit: ClassVar[str] = "share of held-out prompts answered right"

    def summary(self) -> str:
        said = ", ".join(
            f"{row['module']} {row['score']:.2f} (control {row['control']:.2f})"
            for row in self.table.to_dict("records")
        )
        means = self.coefficients.groupby("update", sort=False)["coefficient"].mean()
        learned = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
        return f"{said}; mean coefficients: {learned}. Control: {self.control}."


@method(
    "learned-scaling",
    group="weights",
    question="Which updates, at which tensors, does a task want, and how much of each?",
    papers=("Knowledge Composition using Task Vectors with Learned Anisotropic Scaling",),
    needs=Needs(columns=("answer",)),
    cost="4 x epochs x one forward and backward pass per batch",
    example="--checkpoints ./adapter",
)
def learned_scaling(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    epochs: int = 10,
    lr: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> LearnedScaling:
    """Learn base + sum of coefficient * update on half of the prompts; the other half reports.

    Coefficients start at 0 (the base) and follow AdamW (weight decay 0.1, gradients clipped at 1), as in the paper. The
    gradient of a coefficient is <dL/dW, update> of its tensor, so nothing but the weights' gradients is held.

    Args:
        pair: Base and one fine-tune.
        prompts: Rows with an answer, of the task that is wanted.
        checkpoints: The other fine-tunes whose updates may be used.
        epochs: Passes over the training half.
        lr: Step size.
        seed: Of the split and of the control's signs.

    Raises:
        UserError: Prompts without answers or too few.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    vectors, models = updates_of(pair.base, pair_members(pair, checkpoints, fewest=1))
    answers = Answers.of(pair.base, rows, batch_size)
    fit, report = answers.halves(seed)
    shuffled = {name: vector.sign_shuffled(seed) for name, vector in vectors.items()}
    watch = progress or Silent()
    learner = _Learner(answers, fit, epochs, lr, watch)
    watch.start("coefficients", 4 * epochs)
    table = [{"module": "base", **_row(answers, report, None, None, seed)}]
    learned: dict[str, dict[str, Tensor]] = {}
    for kind, by_tensor in (("one each", False), ("per tensor", True)):
        learned[kind] = learner.learn(vectors, by_tensor)
        against = _sum(shuffled, learner.learn(shuffled, by_tensor))
        table.append({"module": kind, **_row(answers, report, _sum(vectors, learned[kind]), against, seed)})
    watch.finish()
    return LearnedScaling(
        table=with_q(table, keep_p=False),
        control="the same training on the updates with every entry under a random sign",
        provenance=Provenance.of(
            "learned_scaling", models, rows, seed=seed, device=str(pair.base.device),
            forward_passes=answers.passes + learner.passes, backward_passes=learner.passes,
        ),
        coefficients=_coefficients(vectors, learned["per tensor"]),
    )  # fmt: skip


@dataclass
class _Learner:
    answers: Answers
    task: Task
    epochs: int
    lr: float
    watch: Progress
    passes: int = 0

    def learn(self, vectors: Mapping[str, TaskVector], by_tensor: bool) -> dict[str, Tensor]:
        """Update -> a coefficient per tensor, in the order of its tensors (all equal unless ``by_tensor``)."""
        weights = {name: torch.zeros(len(vector.changes) if by_tensor else 1) for name, vector in vectors.items()}
        leaves = [weight.requires_grad_(True) for weight in weights.values()]
        optimiser = torch.optim.AdamW(leaves, lr=self.lr, weight_decay=_DECAY)
        for _ in tracked(range(self.epochs), self.watch):
            for batch in self.task.batches:
                slopes = self._slopes(vectors, _spread(vectors, weights), batch)
                for name, weight in weights.items():
                    weight.grad = slopes[name] if by_tensor else slopes[name].sum()[None]
                torch.nn.utils.clip_grad_norm_(leaves, _CLIP)
                optimiser.step()
        return _spread(vectors, weights)

    def _slopes(
        self, vectors: Mapping[str, TaskVector], weights: Mapping[str, Tensor], batch: Any
    ) -> dict[str, Float[Tensor, " tensor"]]:
        """dL / d coefficient = <dL/dW, update> for every update and tensor."""
        model, total = self.answers.base, _sum(vectors, weights)
        known = base_parameters(model.hf)
        held = {name: find_parameter(known, name) for name in total.changes}
        with total.graft(model).entered(model), differentiable(list(held.values())), torch.enable_grad():
            logits, label = self.task.classify(model.hf, batch)
            gradients = torch.autograd.grad(
                cross_entropy(logits.float(), label), list(held.values()), allow_unused=True
            )
        self.passes += 1
        slopes = dict(zip(held, gradients, strict=True))
        return {title: torch.stack([_along(slopes[name], vector.changes[name]) for name in vector.changes])
                for title, vector in vectors.items()}  # fmt: skip


def _along(slope: Tensor | None, change: Tensor) -> Tensor:
    return torch.zeros(()) if slope is None else (slope.detach().float() * change.to(slope.device)).sum().cpu()


def _spread(vectors: Mapping[str, TaskVector], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A coefficient per tensor, without gradients."""
    return {name: weights[name].detach().expand(len(vector.changes)).clone() for name, vector in vectors.items()}


def _sum(vectors: Mapping[str, TaskVector], weights: Mapping[str, Tensor]) -> TaskVector:
    total: TaskVector | None = None
    for title, vector in vectors.items():
        of = dict(zip(vector.changes, weights[title].tolist(), strict=True))
        part = vector.by_name(of.__getitem__)
        total = part if total is None else total + part
    assert total is not None
    return total


def _row(
    answers: Answers, task: Task, vector: TaskVector | None, against: TaskVector | None, seed: int
) -> dict[str, float]:
    outcome, other = answers.outcome(task, vector), answers.outcome(task, against)
    clusters = task.clusters if task.clusters is not None else np.arange(len(outcome.right))
    return {
        **beside_control(outcome.right, other.right, clusters, seed=seed, share=True),
        "loss": outcome.loss,
        "n": len(outcome.right),
    }


def _coefficients(vectors: Mapping[str, TaskVector], weights: Mapping[str, Tensor]) -> pd.DataFrame:
    rows = []
    for title, vector in vectors.items():
        for name, coefficient in zip(vector.changes, weights[title].tolist(), strict=True):
            place = place_of(name)
            rows.append({"update": title, "layer": place.layer, "module": place.module, "coefficient": coefficient})
    return pd.DataFrame(rows)
