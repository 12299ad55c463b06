"""A team of workers on a Ray cluster: parts of a job go out, and answers come back in the order of the parts.

Every worker holds the whole models. A worker that dies is started again, and what it had not delivered is done again.
Numbers are those of one process wherever a forward pass gives the same bits there: same hardware, as many threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from workbench.cluster.cluster import cluster, ray_module, size_of
from workbench.cluster.shipping import Address, NotShippable, Subject, addresses, models_of, packed, unpacked
from workbench.cluster.worker import ModelWorker
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.adapter_layers import acting_state
from workbench.models.origin import Origin, fingerprint
from workbench.models.passes import add_passes

AHEAD = 2
"""Parts that a worker may have under way or undelivered."""
RESTARTS = 3
"""How often a worker that died is started again."""


@dataclass(frozen=True)
class Team:
    """The workers of one subject; they are started when first needed, and stay until the team is dismissed."""

    ray: Any
    subject: Subject
    origin: Origin | None
    marks: Mapping[str, str]
    """Role -> fingerprint of the weights that the workers loaded."""
    switches: Mapping[str, Any]
    """Role -> which adapters act, and how strongly."""
    has_gpu: bool
    most: int
    actors: list[Any] = field(default_factory=list)

    @cached_property
    def places(self) -> dict[int, Address]:
        """What of this process is to be had in every worker."""
        return addresses(self.subject)

    def job(self, function: Callable[[Any], Any]) -> list[Any]:
        """``function`` as the workers take it, for :meth:`each`.

        Raises:
            NotShippable: The models here are not as the workers loaded them, or ``function`` holds what cannot be sent.
        """
        if changed := self._changed():
            raise NotShippable(f"the {changed} model here is not as the workers loaded it")
        return [self.ray.put(packed(function, self.places))]

    def each(self, job: list[Any], parts: Sequence[Any]) -> Iterator[Any]:
        """The answer to every part, in the order of the parts; a few parts ahead per worker."""
        self._start(min(self.most, len(parts)))
        under_way: deque[Any] = deque()
        for number, part in enumerate(parts):
            if len(under_way) >= AHEAD * len(self.actors):
                yield self._answer(under_way.popleft())
            under_way.append(self.actors[number % len(self.actors)].run.remote(job, part))
        while under_way:
            yield self._answer(under_way.popleft())

    def serves(self, models: Mapping[str, AdaptedModel]) -> bool:
        """Whether the workers hold these models as they are now."""
        return all(id(model) in self.places for model in models.values()) and not self._changed()

    def dismiss(self) -> None:
        """End the workers."""
        while self.actors:
            self.ray.kill(self.actors.pop())

    def _changed(self) -> str:
        """The role of a model that is not as the workers have it: hooked, held, switched or with other weights."""
        return changed_role(models_of(self.subject), self.marks, self.switches)

    def _answer(self, reference: Any) -> Any:
        answer, passes = _answer(self.ray, reference)
        for role, count in passes.items():
            add_passes(models_of(self.subject)[role], count)
        return answer

    def _start(self, count: int) -> None:
        remote = self.ray.remote(
            num_cpus=1, num_gpus=int(self.has_gpu), max_restarts=RESTARTS, max_task_retries=RESTARTS
        )(ModelWorker)  # fmt: skip
        device, threads = "cuda" if self.has_gpu else "cpu", torch.get_num_threads()
        while len(self.actors) < count:
            self.actors.append(remote.remote(self.origin, dict(self.marks), device, threads))


def fingerprints(models: Mapping[str, AdaptedModel]) -> dict[str, str]:
    """Role -> fingerprint; weights that two roles share are read once."""
    marks: dict[int, str] = {}
    for model in models.values():
        if id(model.hf) not in marks:
            marks[id(model.hf)] = fingerprint(model)
    return {role: marks[id(model.hf)] for role, model in models.items()}


def changed_role(models: Mapping[str, AdaptedModel], marks: Mapping[str, str], switches: Mapping[str, Any]) -> str:
    """The role of a model that is hooked, held, switched or has other weights than these; empty where none is."""
    for role, model in models.items():
        if model.n_hooks or model.hub.held or acting_state(model.hf) != switches[role]:
            return role
    now = fingerprints(models)
    return next((role for role in models if now[role] != marks[role]), "")


def changed_since(models: Mapping[str, AdaptedModel]) -> Callable[[], str]:
    """Tells, whenever it is called, which role is no longer as it is now."""
    switches = {role: acting_state(model.hf) for role, model in models.items()}
    return partial(changed_role, models, fingerprints(models), switches)


@contextmanager
def team(subject: Subject, workers: int | None = None) -> Iterator[Team]:
    """``workers`` processes (default: one per GPU of the cluster, else per CPU), for as long as the context lasts.

    Args:
        subject: The pair or the model that every worker loads; None: work that loads its models itself.
        workers: How many, at most as many as the cluster has CPUs or GPUs.

    Raises:
        UserError: Ray is missing, the models were not loaded from folders or hub ids or are being intervened on, or the
            cluster is too small.
    """
    ray = ray_module()
    models = models_of(subject)
    origin = _origin(models) if models else None
    with cluster(ray):
        has_gpu, most = size_of(ray, workers)
        switches = {role: acting_state(model.hf) for role, model in models.items()}
        made = Team(ray, subject, origin, fingerprints(models), switches, has_gpu, most)
        try:
            yield made
        finally:
            made.dismiss()


def _answer(ray: Any, reference: Any) -> Any:
    try:
        return unpacked(ray.get(reference), None)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"A worker died and could not be replaced ({_reason(error)}): give it more memory or a smaller batch_size; "
            "what is stored on the disk goes on from its last complete part."
        ) from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _origin(models: Mapping[str, AdaptedModel]) -> Origin:
    for model in models.values():
        if model.n_hooks or model.hub.held:
            raise NotSupported(
                "Interventions are on this model here, and the workers' models would not have them: leave their "
                "context, or run in this process alone."
            )
    origin = next(iter(models.values())).origin
    if origin is None:
        raise UserError(
            "A Ray cluster loads the pair again in every worker: load it from folders or hub ids (and without a "
            "device_map), not from models that are loaded already."
        )
    return origin
