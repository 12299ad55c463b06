"""A recording shared out over a Ray cluster: each worker holds the whole pair and runs some of the windows.

The windows are those of a recording in one process and are put together in the same order, so rows and stored bytes are
those of one process wherever a forward pass gives the same bits there (same hardware, same number of threads).
Statistics are merged window by window (Chan et al. 1979): the same for any number of workers, and within 1e-12 of
those of one process, relative to the largest entry. A worker that dies is started again, and what it had not delivered
is run again.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from workbench.errors import MissingExtra, NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.origin import Origin, fingerprint
from workbench.models.pair import load_again
from workbench.progress import Silent
from workbench.recording.plan import Plan, continued_window
from workbench.recording.sinks import Sink

AHEAD = 2
"""Windows that a worker may have under way or undelivered."""
RESTARTS = 3
"""How often a worker that died is started again."""


class RecordingWorker:
    """One whole pair in a process of its own, on one GPU where there are GPUs."""

    def __init__(self, origin: Origin, expected: dict[str, str], device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._models: dict[str, AdaptedModel] = {}
        self._problem: UserError | None = None
        self._fetched: dict[str, Any] = {}
        try:
            self._models = _loaded(origin, expected, device)
        except UserError as error:  # raised here it would end the process, and Ray would start another
            self._problem = error

    def record(self, job: list[Any], window: list[int], part: Sink) -> Sink:
        """``part``, an empty sink, with the rows of ``window``; ``job`` is a reference in a list."""
        filled = copy.deepcopy(part)
        self._own(job, lambda given: replace(given, models=self._models, progress=Silent())).record(window, filled)
        return filled

    def continued(self, before: list[Any], window: list[int], new_tokens: int, writer: str) -> dict[int, list[int]]:
        """The prompts of ``window`` with their continuations, as the writing model gives them."""
        return continued_window(self._own(before, lambda given: given), window, self._models[writer], new_tokens)

    def _own(self, reference: list[Any], prepared: Callable[[Any], Any]) -> Any:
        """What is referred to, fetched once: with the arguments of every call Ray would unpack it again."""
        if self._problem is not None:
            raise self._problem
        import ray

        key = reference[0].hex()
        if key not in self._fetched:
            self._fetched[key] = prepared(ray.get(reference[0]))
        return self._fetched[key]


def _loaded(origin: Origin, expected: Mapping[str, str], device: str) -> dict[str, AdaptedModel]:
    models = load_again(origin, device)
    for role, mark in expected.items():
        if fingerprint(models[role]) != mark:
            raise UserError(
                f"A worker loaded other weights for the {role} model than are in memory here: {models[role].name} "
                "changed since, or its weights were changed after loading; save them and load the pair again."
            )
    return {role: models[role] for role in expected}


@dataclass(frozen=True)
class Team:
    """The workers of one recording; they are started when first needed."""

    ray: Any
    origin: Origin
    marks: Mapping[str, str]
    """Role -> fingerprint of the weights in memory here."""
    has_gpu: bool
    most: int
    actors: list[Any] = field(default_factory=list)

    def continued(self, before: Plan, new_tokens: int, writer: str) -> list[list[int]]:
        """The token ids of every prompt with its continuation; each window is one worker's."""
        windows, shared = before.windows(), [self.ray.put(before)]
        ids = list(before.ids)
        for found in self._in_turn(
            windows, lambda one, window: one.continued.remote(shared, window, new_tokens, writer)
        ):
            for prompt, row in found.items():
                ids[prompt] = row
        return ids

    def recorded(self, job: Any, windows: Sequence[list[int]], part: Sink) -> Iterator[Sink]:
        """``part``, an empty sink, filled with each window in turn."""
        shared, empty = [self.ray.put(replace(job, models={}, progress=Silent()))], self.ray.put(part)
        return self._in_turn(windows, lambda one, window: one.record.remote(shared, window, empty))

    def dismiss(self) -> None:
        """End the workers."""
        while self.actors:
            self.ray.kill(self.actors.pop())

    def _in_turn(self, windows: Sequence[list[int]], ask: Callable[[Any, list[int]], Any]) -> Iterator[Any]:
        """Answers in the order of the windows, a few windows ahead per worker."""
        self._start(min(self.most, len(windows)))
        under_way: deque[Any] = deque()
        for number, window in enumerate(windows):
            if len(under_way) >= AHEAD * len(self.actors):
                yield _answer(self.ray, under_way.popleft())
            under_way.append(ask(self.actors[number % len(self.actors)], window))
        while under_way:
            yield _answer(self.ray, under_way.popleft())

    def _start(self, count: int) -> None:
        remote = self.ray.remote(
            num_cpus=1, num_gpus=int(self.has_gpu), max_restarts=RESTARTS, max_task_retries=RESTARTS
        )(RecordingWorker)  # fmt: skip
        device, threads = "cuda" if self.has_gpu else "cpu", torch.get_num_threads()
        while len(self.actors) < count:
            self.actors.append(remote.remote(self.origin, dict(self.marks), device, threads))


@contextmanager
def team(models: dict[str, AdaptedModel], workers: int | None) -> Iterator[Team]:
    """``workers`` processes (default: one per GPU of the cluster, else per CPU), for as long as the context lasts.

    Raises :class:`UserError` when Ray is missing, when the models were not loaded from folders or hub ids or are being
    intervened on, and when the cluster is too small.
    """
    ray = _ray()
    origin = _origin(models)
    with _cluster(ray):
        has_gpu, most = _size(ray, workers)
        made = Team(ray, origin, {role: fingerprint(model) for role, model in models.items()}, has_gpu, most)
        try:
            yield made
        finally:
            made.dismiss()


def _answer(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"A recording worker died and could not be replaced ({_reason(error)}): give it more memory or a smaller "
            "batch_size; a stored recording goes on from its last complete shard."
        ) from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU see none; no warning
    try:
        import ray
    except ImportError as error:
        raise MissingExtra('Recording with executor="ray"', "ray") from error
    return ray


def _origin(models: dict[str, AdaptedModel]) -> Origin:
    for model in models.values():
        if model.n_hooks or model.hub.held:
            raise NotSupported(
                "Interventions are on this model here, and the workers' models would not have them: leave their "
                'context, or record with executor="local".'
            )
    origin = next(iter(models.values())).origin
    if origin is None:
        raise UserError(
            'executor="ray" loads the pair again in every worker: load it from folders or hub ids (and without a '
            "device_map), not from models that are loaded already."
        )
    return origin


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """The cluster that is there (``RAY_ADDRESS``, ``ray.init``), else one of this machine, for as long as needed."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        yield
    finally:
        ray.shutdown()


def _size(ray: Any, workers: int | None) -> tuple[bool, int]:
    """Whether workers get a GPU each, and how many there are."""
    there = ray.cluster_resources()
    has_gpu = there.get("GPU", 0) >= 1
    most = int(there.get("GPU" if has_gpu else "CPU", 1))
    if workers is not None and not 1 <= workers <= most:
        raise UserError(
            f"{workers} workers were asked for and the cluster has {most} {'GPUs' if has_gpu else 'CPUs'}, one for "
            f"each worker: give 1 to {most}."
        )
    return has_gpu, workers or most
