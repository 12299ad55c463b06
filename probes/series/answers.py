"""What updates of one base answer: the members of a series as updates, and their outcome on prompts with answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from interventions.weightspace.lazy_tensors import LazyTensors
from interventions.weightspace.swapping import base_parameters
from interventions.weightspace.task_vector import TaskVector
from probes.grafting.language import AnswerRows, answer_rows
from probes.grafting.tasks import Outcome, Task, outcome
from probes.halves import half_of
from probes.replay import read_out
from probes.series.members import Members, difference, difference_pieces, members_of
from probes.weights.naming import key_of
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor

FEWEST = 8


def updates_of(base: AdaptedModel, members: Members) -> tuple[dict[str, TaskVector], dict[str, Any]]:
    """Every member as an update of ``base``, read from its files tensor by tensor, and what all models are."""
    names = {key_of(name): name for name in base_parameters(base.hf)}
    vectors, models = {}, {"base": base.identity}
    for title, opened in members.opened():
        changed = [
            key
            for key in opened.base
            if key in names
            and (key in opened.factors or opened.tuned.get(key, opened.base[key]) is not opened.base[key])
        ]
        back = {names[key]: key for key in changed}
        vectors[title] = TaskVector(
            LazyTensors(
                back,
                lambda name, opened=opened, back=back: difference(opened, back[name]),  # type: ignore[misc]
                lambda name, opened=opened, back=back: difference_pieces(opened, back[name]),  # type: ignore[misc]
            )
        )
        models[title] = opened.identities()["tuned"]
    return vectors, models


@dataclass
class Answers:
    """Prompts with answers, asked of ``base`` with an update in its weights; counts the forward passes."""

    base: AdaptedModel
    rows: AnswerRows
    batch_size: int
    passes: int = 0

    @classmethod
    def of(cls, base: AdaptedModel, prompts: Any, batch_size: int) -> Answers:
        """Raises :class:`UserError` for prompts without answers, and for too few of them."""
        rows = answer_rows(Prompts.of(prompts), base)
        if len(rows.ids) < FEWEST:
            raise UserError(f"{len(rows.ids)} usable prompts are too few: {FEWEST} are needed at least.")
        return cls(base, rows, batch_size)

    def task(self, places: np.ndarray | None = None) -> Task:
        """All rows or some, in batches of similar length."""
        members = np.arange(len(self.rows.ids)) if places is None else places
        return self.rows.task(members, self.base, self.batch_size)

    def halves(self, seed: int) -> tuple[Task, Task]:
        """Rows to choose by and rows to report; a group is never in both."""
        inside = half_of(self.rows.clusters, seed)
        parts = np.flatnonzero(inside), np.flatnonzero(~inside)
        if min(len(part) for part in parts) < FEWEST // 2:
            raise UserError("The prompts have too few groups to choose on one half and report on the other.")
        return self.task(parts[0]), self.task(parts[1])

    def outcome(self, task: Task, vector: TaskVector | None) -> Outcome:
        """Answers of base + update (None: of the base), row by row."""
        self.passes += len(task.batches)
        if vector is None:
            return outcome(task, self.base.hf)
        with vector.graft(self.base).entered(self.base):
            return outcome(task, self.base.hf)

    @torch.no_grad()
    def log_probabilities(self, task: Task, vector: TaskVector | None) -> Float[np.ndarray, "row vocab"]:
        """Of the next word after every prompt, in nats."""
        self.passes += len(task.batches)
        if vector is not None:
            with vector.graft(self.base).entered(self.base):
                return _next_words(self.base, task)
        return _next_words(self.base, task)

    @torch.no_grad()
    def lens(self, task: Task, vector: TaskVector | None) -> Float[np.ndarray, "row layer"]:
        """What the logit lens reads of each row's own answer after every layer, at the last token: its probability."""
        self.passes += len(task.batches)
        if vector is not None:
            with vector.graft(self.base).entered(self.base):
                return _answer_by_layer(self.base, task)
        return _answer_by_layer(self.base, task)


def _answer_by_layer(model: AdaptedModel, task: Task) -> Float[np.ndarray, "row layer"]:
    rows = []
    for encoded, candidates, label in task.batches:
        residuals: dict[int, Tensor] = {}
        own = candidates.gather(1, label[:, None])
        sites = [Site("resid_post", layer) for layer in range(model.n_layers)]
        hooks = [SiteHook(site, partial(_keep_last, residuals, number)) for number, site in enumerate(sites)]
        with model.hooked(hooks):
            model.forward(encoded, logits=None)
        said = [read_out(model, residuals[layer]).float().softmax(-1).cpu() for layer in range(model.n_layers)]
        rows.append(torch.cat([words.gather(1, own) for words in said], 1).numpy())
    return np.concatenate(rows)


def _keep_last(held: dict[int, Tensor], layer: int, value: Tensor, _: Any) -> None:
    held[layer] = value[:, -1]


def _next_words(model: AdaptedModel, task: Task) -> Float[np.ndarray, "row vocab"]:
    words = []
    for encoded, _, _ in task.batches:
        logits = model.forward(encoded, logits="last")
        assert logits is not None
        words.append(logits[:, -1].float().log_softmax(-1).cpu().numpy())
    return np.concatenate(words)


def pair_members(pair: Any, checkpoints: Sequence[str], *, fewest: int = 2) -> Members:
    """``checkpoints`` and the pair's tuned model, the last."""
    return members_of(pair.base, pair.tuned, checkpoints, None, fewest=fewest)
