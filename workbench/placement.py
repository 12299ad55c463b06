"""Where a command's forward passes run: in this process, over the workers of a Ray cluster, or in vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from workbench.cluster.cluster import room_for
from workbench.errors import MissingExtra, UserError, unknown_name
from workbench.vllm.route import EXECUTORS, executor_settings
from workbench.vllm.routing import routed

if TYPE_CHECKING:
    from workbench.models.pair import ModelPair


RUNS_ON = ("local", "ray", "vllm")
"""What a Python call takes as ``executor``; on the command line ``--workers`` means ray."""


def check_executor(executor: str, workers: int | None) -> None:
    """Raise :class:`UserError` for an executor that there is not, and for workers of another one."""
    if executor not in RUNS_ON:
        raise unknown_name("executor", executor, RUNS_ON)
    if workers is not None and executor != "ray":
        raise UserError('workers are processes of a Ray cluster: give executor="ray" with them.')


@dataclass(frozen=True)
class Placement:
    """What a person chose; wrong choices are refused when it is made, before a model is loaded."""

    workers: int | None = None
    """Processes of a Ray cluster; they change no number."""
    executor: str = "local"
    """Who writes texts and reads how likely they are: local, or vllm."""
    engine_settings: Mapping[str, Any] | None = None
    """For vLLM."""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, EXECUTORS)
        if self.executor == "local":
            if self.engine_settings is not None:
                raise UserError("Engine settings are vLLM's: choose the executor vllm with them.")
            return
        if self.workers is not None:
            raise UserError("Workers are processes of a Ray cluster, which run no vLLM: choose one of the two.")
        if find_spec("vllm") is None:
            raise MissingExtra("The vLLM engine", "vllm")

    def ready(self) -> AbstractContextManager[None]:
        """To be entered before models are loaded: a cluster that is too small is refused here."""
        return room_for(self.workers)

    def on(self, pair: ModelPair) -> AbstractContextManager[None]:
        """What runs inside on ``pair`` runs there."""
        from workbench.cluster.splitting import shared_out

        if self.executor == "vllm":
            return routed(pair.models, self.executor, self.engine_settings)
        return shared_out(pair, self.workers)

    def of_a_recording(self) -> dict[str, Any]:
        """The same choice as options of :func:`workbench.record`, which takes Ray's workers for an executor too."""
        if self.workers is not None:
            return {"executor": "ray", "workers": self.workers}
        return {"executor": self.executor, "engine_settings": self.engine_settings}

    def settings(self) -> dict[str, Any]:
        """What numbers hang on of it: nothing, unless vLLM computes them."""
        return executor_settings(self.executor, self.engine_settings)
