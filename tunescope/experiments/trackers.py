"""One optional hook: the same numbers to MLflow or Weights & Biases, where a person asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from workbench.errors import UserError
from workbench.runs import Run

PROJECT = "tunescope"


@runtime_checkable
class Log(Protocol):
    """Where numbers of one experiment go."""

    def metrics(self, cell: int, values: Mapping[str, float]) -> None:
        """The estimates of one cell."""

    def tables(self, files: Sequence[Path]) -> None:
        """The run's tables, as files."""


@runtime_checkable
class Tracker(Protocol):
    """Opens a :class:`Log`."""

    def opened(self, name: str, run: Run) -> AbstractContextManager[Log]:
        """A log for the experiment ``name``, closed on leaving, also after an exception."""


class _Nothing:
    """The default: nothing leaves the machine."""

    def metrics(self, cell: int, values: Mapping[str, float]) -> None: ...

    def tables(self, files: Sequence[Path]) -> None: ...

    @contextmanager
    def opened(self, name: str, run: Run) -> Iterator[Log]:  # noqa: ARG002
        yield self


class _Wandb:
    """Weights & Biases. Its own settings decide where it writes and whether it sends (``WANDB_MODE``)."""

    def __init__(self) -> None:
        self._wandb = _library("wandb")

    @contextmanager
    def opened(self, name: str, run: Run) -> Iterator[Log]:
        try:
            self._run = self._wandb.init(project=PROJECT, name=run.name, group=name, config=run.config)
        except self._wandb.errors.Error as error:
            raise UserError(
                f"wandb refused ({error}); the results are in {run.path}. Log in, or set WANDB_MODE=offline, and run "
                "the same command again."
            ) from error
        failed = True
        try:
            yield self
            failed = False
        finally:
            self._run.finish(exit_code=int(failed))

    def metrics(self, cell: int, values: Mapping[str, float]) -> None:
        self._run.log({"cell": cell, **values}, step=cell)

    def tables(self, files: Sequence[Path]) -> None:
        artifact = self._wandb.Artifact("tables", type="tables")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)


class _MLflow:
    """MLflow. Its own settings decide where it writes (``MLFLOW_TRACKING_URI``)."""

    def __init__(self) -> None:
        self._mlflow = _library("mlflow")

    @contextmanager
    def opened(self, name: str, run: Run) -> Iterator[Log]:
        try:
            self._mlflow.set_experiment(f"{PROJECT} {name}")
            started = self._mlflow.start_run(run_name=run.name)
        except self._mlflow.exceptions.MlflowException as error:
            raise UserError(
                f"mlflow refused ({str(error).splitlines()[0]}); the results are in {run.path}. Set "
                "MLFLOW_TRACKING_URI, and run the same command again."
            ) from error
        with started:
            self._mlflow.log_dict(run.config, "config.json")
            yield self

    def metrics(self, cell: int, values: Mapping[str, float]) -> None:
        # a name may hold letters, digits, _ - . space and / there
        allowed = {
            "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in name): value
            for name, value in values.items()
        }
        self._mlflow.log_metrics(allowed, step=cell)

    def tables(self, files: Sequence[Path]) -> None:
        for file in files:
            self._mlflow.log_artifact(str(file), "tables")


_KNOWN: dict[str, Callable[[], Tracker]] = {"mlflow": _MLflow, "wandb": _Wandb}


def untracked() -> Tracker:
    """A tracker that keeps nothing."""
    return _Nothing()


def tracker(name: str | None) -> Tracker:
    """The tracker of that name; None keeps nothing. Raises :class:`UserError` when it is not installed."""
    if name is None:
        return untracked()
    if name not in _KNOWN:
        raise UserError(f"There is no tracker {name!r}: give one of {', '.join(_KNOWN)}, or leave it out.")
    return _KNOWN[name]()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"The tracker {name} is not installed: install with  pip install {name}  or leave it out."
        ) from error
