"""online_offline: a fast adapter and its slow average (LAE): where they differ, and what their ensemble knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from interventions.weightspace.task_vector import TaskVector
from probes.grafting.tasks import Task
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.series.adapter_bank import task_labels
from probes.series.answers import Answers, pair_members, updates_of
from probes.weights.naming import place_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches
from workbench.typing import Float


@dataclass(frozen=True, kw_only=True)
class OnlineOffline(ProbeResult):
    """One row per task (``module``), and one for all prompts.

    ``score``: share of prompts that the ensemble answers right (of the two models' probabilities the larger counts);
    ``control``: the mean of the online adapter in ensemble with itself moved at random, in every tensor as far as the
    offline one is from it; ``q`` of the difference. ``online``, ``offline``, ``base``: shares of each alone;
    ``disagree``: share of prompts on which online and offline answer otherwise. ``modules``: layer, module, ``gap``:
    ||online - offline|| in ||online|| (where that is 0:
    whether they differ), ``cosine`` of the two updates.
    """

    modules: pd.DataFrame

    title: ClassVar[str] = "Online and offline adapter"
    unit: ClassVar[str] = "share of prompts the ensemble answers right"

    def summary(self) -> str:
        whole = self.table[self.table["module"] == ALL].iloc[0]
        widest = self.modules.sort_values("gap", kind="stable").iloc[-1]
        return (
            f"Ensemble {whole['score']:.2f} [{whole['low']:.2f}, {whole['high']:.2f}] of {whole['n']:.0f} prompts, "
            f"online {whole['online']:.2f}, offline {whole['offline']:.2f}, random second {whole['control']:.2f}; they "
            f"differ most at L{widest['layer']:.0f} {widest['module']} ({widest['gap']:.2f} of the online update). "
            f"Control: {self.control}."
        )


ALL = "all"


@method(
    "online-offline",
    group="weights",
    question="What does the slow average of an adapter hold that the fast one lost, and does their ensemble have both?",
    papers=("A Unified Continual Learning Framework with General Parameter-Efficient Tuning",),
    needs=Needs(columns=("answer", "label")),
    cost="a forward pass per prompt for base, online, offline and every random draw",
    example="--offline ./adapter",
)
def online_offline(
    pair: Any,
    prompts: Any,
    *,
    offline: str = "",
    draws: int = 3,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> OnlineOffline:
    """Compare the pair's tuned model (online) with the average of its past (offline), and ask both together.

    In LAE (Gao et al. 2023) the offline module follows the online one as an exponential moving average, and the
    prediction is the class to which either gives its largest probability. Any kind of adapter or whole model does, as
    only the changes of the weights and the answers are read.

    Args:
        pair: Base and the online model.
        prompts: Rows with an answer, and a label that names their task, old and new ones.
        offline: The folder or hub id of the offline model or adapter.
        draws: Random second models of the control.
        seed: Of the random models and the intervals.

    Raises:
        UserError: No offline model, no labels, or too few prompts of a task.
    """
    check_pair(pair)
    if not offline:
        raise UserError("Name the offline model: offline= the folder of the averaged adapter or model.")
    rows = Prompts.of(prompts)
    vectors, models = updates_of(pair.base, pair_members(pair, [offline]))
    if len(vectors) != 2:
        raise UserError(f"{offline} holds {len(vectors) - 1} models: name the folder of one offline model.")
    slow, fast = vectors.values()
    answers = Answers.of(pair.base, rows, batch_size)
    labels = task_labels(rows, answers)
    watch = progress or Silent()
    watch.start("online and offline", 3 + draws)
    order = answers.task()
    sides = {"base": None, "online": fast, "offline": slow}
    said = {name: _probabilities(answers, order, side) for name, side in sides.items()}
    watch.advance(3)
    gap = fast + -slow
    random = []
    for draw in tracked(range(draws), watch):
        random.append(_probabilities(answers, order, fast + gap.sign_shuffled(seed * 1009 + draw)))
    watch.finish()
    table = pd.DataFrame(_lines(said, random, _ordered(answers, labels), order, seed))
    return OnlineOffline(
        table=with_q(table, keep_p=False),
        control=f"the online adapter with itself moved at random as far as the offline one is away ({draws} draws)",
        provenance=Provenance.of(
            "online_offline", models, rows, seed=seed, device=str(pair.base.device), forward_passes=answers.passes,
        ),
        modules=_modules(fast, slow),
    )  # fmt: skip


@dataclass(frozen=True)
class _Said:
    """Probabilities of the candidates, and which is right."""

    chances: list[Float[np.ndarray, " class"]]
    label: np.ndarray

    def right(self, other: _Said | None = None) -> Float[np.ndarray, " row"]:
        """Hits alone, or of the larger probability of two."""
        both = self.chances if other is None else [
            np.maximum(chance, two) for chance, two in zip(self.chances, other.chances, strict=True)
        ]  # fmt: skip
        return np.array([float(logits.argmax() == label) for logits, label in zip(both, self.label, strict=True)])

    def answers(self) -> np.ndarray:
        return np.array([chance.argmax() for chance in self.chances])


@torch.no_grad()
def _probabilities(answers: Answers, task: Task, vector: TaskVector | None) -> _Said:
    answers.passes += len(task.batches)
    if vector is None:
        return _of_batches(answers, task)
    with vector.graft(answers.base).entered(answers.base):
        return _of_batches(answers, task)


def _of_batches(answers: Answers, task: Task) -> _Said:
    chances: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for batch in task.batches:
        logits, label = task.classify(answers.base.hf, batch)
        chances += list(logits.float().softmax(-1).cpu().numpy())
        labels.append(label.cpu().numpy())
    return _Said(chances, np.concatenate(labels))


def _ordered(answers: Answers, labels: np.ndarray) -> np.ndarray:
    """Labels in the order of the task's batches."""
    return labels[np.concatenate(batches([len(ids) for ids in answers.rows.ids], answers.batch_size))]


def _lines(
    said: dict[str, _Said], random: Sequence[_Said], labels: np.ndarray, task: Task, seed: int
) -> list[dict[str, Any]]:
    clusters = np.arange(len(labels)) if task.clusters is None else task.clusters
    ensemble = said["online"].right(said["offline"])
    other = np.mean([said["online"].right(number) for number in random], axis=0)
    disagree = said["online"].answers() != said["offline"].answers()
    lines = []
    for name in (*dict.fromkeys(labels), ALL):
        inside = np.ones(len(labels), bool) if name == ALL else labels == name
        lines.append({
            "module": name,
            **beside_control(ensemble[inside], other[inside], clusters[inside], seed=seed, share=True),
            **{role: float(said[role].right()[inside].mean()) for role in ("online", "offline", "base")},
            "disagree": float(disagree[inside].mean()), "n": int(inside.sum()),
        })  # fmt: skip
    return lines


def _modules(fast: TaskVector, slow: TaskVector) -> pd.DataFrame:
    """Tensor by tensor: how far the two updates are apart."""
    lines = []
    for name in dict.fromkeys([*fast.changes, *slow.changes]):
        sides = [vector.changes[name].float() if name in vector.changes else None for vector in (fast, slow)]
        known = next(side for side in sides if side is not None)
        online, offline = (torch.zeros_like(known) if side is None else side for side in sides)
        place, size = place_of(name), float(online.norm())
        lines.append({
            "layer": place.layer, "module": place.module,
            "gap": float((online - offline).norm()) / size if size else float((offline != 0).any()),
            "cosine": float(torch.nn.functional.cosine_similarity(online.flatten(), offline.flatten(), dim=0)),
        })  # fmt: skip
    return pd.DataFrame(lines)
