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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from workbench.errors import MissingExtra, NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.origin import Origin, fingerprint
from workbench.progress import Silent
from workbench.recording.sinks import Sink

AHEAD = 2
"""Windows that a worker may have under way or undelivered."""
RESTARTS = 3
"""How often a worker that died is started again."""


class RecordingWorker:
    """One whole pair in a process of its own, on one GPU where there are GPUs."""

    def __init__(self, origin: Origin, job: Any, expected: dict[str, str], device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._problem: UserError | None = None
        try:
            self._job = replace(job, models=_loaded(origin, expected, device), progress=Silent())
        except UserError as error:  # raised here it would end the process, and Ray would start another
            self._problem = error

    def record(self, window: list[int], part: Sink) -> Sink:
        """``part``, an empty sink, with the rows of ``window``."""
        if self._problem is not None:
            raise self._problem
        filled = copy.deepcopy(part)
        self._job.record(window, filled)
        return filled


def _loaded(origin: Origin, expected: Mapping[str, str], device: str) -> dict[str, AdaptedModel]:
    models = origin.load(device)
    for role, mark in expected.items():
        if fingerprint(models[role]) != mark:
            raise UserError(
                f"A worker loaded other weights for the {role} model than are in memory here: {models[role].name} "
                "changed since, or its weights were changed after loading; save them and load the pair again."
            )
    return {role: models[role] for role in expected}


@dataclass(frozen=True)
class Team:
    """Workers to be: what each of them loads, and how many there will be."""

    ray: Any
    origin: Origin
    marks: Mapping[str, str]
    """Role -> fingerprint of the weights in memory here."""
    has_gpu: bool
    most: int

    def recorded(self, job: Any, windows: Sequence[list[int]], part: Sink) -> Iterator[Sink]:
        """``part``, an empty sink, filled with each window in turn."""
        if not windows:
            return
        ray, device = self.ray, "cuda" if self.has_gpu else "cpu"
        remote = ray.remote(
            num_cpus=1, num_gpus=int(self.has_gpu), max_restarts=RESTARTS, max_task_retries=RESTARTS
        )(RecordingWorker)  # fmt: skip
        shared, threads = ray.put(replace(job, models={}, progress=Silent())), torch.get_num_threads()
        count = min(self.most, len(windows))
        actors = [remote.remote(self.origin, shared, dict(self.marks), device, threads) for _ in range(count)]
        try:
            yield from _in_turn(ray, actors, windows, ray.put(part))
        finally:
            for actor in actors:
                ray.kill(actor)


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
        yield Team(ray, origin, {role: fingerprint(model) for role, model in models.items()}, has_gpu, most)


def _in_turn(ray: Any, actors: list[Any], windows: Sequence[list[int]], part: Any) -> Iterator[Sink]:
    """Results in the order of the windows, a few windows ahead per worker."""
    waiting = iter(enumerate(windows))
    under_way: deque[Any] = deque()
    done = False
    while under_way or not done:
        while not done and len(under_way) < AHEAD * len(actors):
            number, window = next(waiting, (0, None))
            if window is None:
                done = True
            else:
                under_way.append(actors[number % len(actors)].record.remote(window, part))
        if under_way:
            yield _result(ray, under_way.popleft())


def _result(ray: Any, reference: Any) -> Sink:
    try:
        filled: Sink = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"A recording worker died and could not be replaced ({_reason(error)}): give it more memory or a smaller "
            "batch_size; a stored recording goes on from its last complete shard."
        ) from error
    return filled


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
