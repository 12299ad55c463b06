"""A process that holds the whole models and does parts of a job on them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from workbench.cluster.shipping import Subject, models_of, packed, unpacked
from workbench.errors import UserError
from workbench.models.origin import Origin, fingerprint
from workbench.models.pair import load_again
from workbench.models.passes import counted


class ModelWorker:
    """The models of one origin in a process of its own, on one GPU where there are GPUs; loaded once."""

    def __init__(self, origin: Origin | None, expected: Mapping[str, str], device: str, threads: int) -> None:
        """``origin`` None: work that loads its models itself. ``expected``: role -> fingerprint of the weights."""
        torch.set_num_threads(threads)
        self._subject: Subject = None
        self._problem: UserError | None = None
        self._job: tuple[str, Any] = ("", None)
        try:
            self._subject = None if origin is None else _loaded(origin, expected, device)
        except UserError as error:  # raised here it would end the process, and Ray would start another
            self._problem = error

    def run(self, job: list[Any], part: Any) -> bytes:
        """What the job's function makes of ``part``; ``job`` is a reference in a list, fetched and unpacked once.

        The answer, with the forward passes of each role's body, is packed, as arrays that Ray itself hands over cannot
        be written to.
        """
        if self._problem is not None:
            raise self._problem
        import ray

        if self._job[0] != job[0].hex():
            self._job = ("", None)  # let go of the last one first
            self._job = (job[0].hex(), unpacked(ray.get(job[0]), self._subject))
        with ExitStack() as stack:
            bodies = {id(model.inner): (role, model) for role, model in models_of(self._subject).items()}
            passes = {role: stack.enter_context(counted(model)) for role, model in bodies.values()}
            answer = self._job[1](part)
        return packed((answer, {role: counter.forward for role, counter in passes.items()}), {})


def _loaded(origin: Origin, expected: Mapping[str, str], device: str) -> Subject:
    subject = load_again(origin, device)
    for role, model in models_of(subject).items():
        if role in expected and fingerprint(model) != expected[role]:
            raise UserError(
                f"A worker loaded other weights for the {role} model than are in memory here: {model.name} changed "
                "since, or its weights were changed after loading; save them and load the pair again."
            )
    return subject
