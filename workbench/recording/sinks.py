"""Where recorded rows go: memory, shards on disk, or statistics that do not grow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from workbench.recording.statistics import StreamingMoments, TopActivating
from workbench.recording.store import ShardWriter
from workbench.typing import Tensor

DIFFERENCE = "difference"


class Sink:
    """Takes the rows of one window after another; a context that ends well or keeps what is complete."""

    steps_done = 0
    """Windows that an interrupted run had stored already."""
    folder: Path | None = None

    def __init__(self) -> None:
        self.index: dict[str, list[Any]] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.moments: dict[str, dict[str, Any]] = {}
        self.top: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def add(self, tensors: dict[str, Tensor], index: dict[str, list[Any]]) -> None:
        """One window: tensors [row, ...] keyed ``role/site``, and the index columns."""
        raise NotImplementedError


class MemorySink(Sink):
    """Keeps every row in main memory."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: dict[str, list[Tensor]] = {}

    def add(self, tensors: dict[str, Tensor], index: dict[str, list[Any]]) -> None:
        for name, rows in tensors.items():
            self._pieces.setdefault(name, []).append(rows.cpu())
        for name, values in index.items():
            self.index.setdefault(name, []).extend(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._pieces):
            role, _, site = name.partition("/")
            pieces = self._pieces.pop(name)
            self.tensors.setdefault(role, {})[site] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class StoreSink(Sink):
    """Writes shards; see :class:`ShardWriter`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.folder = folder
        self._writer = ShardWriter(folder, config)
        self.steps_done = self._writer.steps_done

    def add(self, tensors: dict[str, Tensor], index: dict[str, list[Any]]) -> None:
        self._writer.append(tensors, index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)


class StatisticsSink(Sink):
    """Float64 moments per model and site, and of tuned - base; memory does not grow with the prompts."""

    def __init__(self, *, covariance: bool, top: int) -> None:
        super().__init__()
        self._covariance, self._top = covariance, top
        self._rows = 0
        self.index = {"prompt": [], "position": []}

    def add(self, tensors: dict[str, Tensor], index: dict[str, list[Any]]) -> None:
        for name, rows in self._with_difference(tensors).items():
            role, _, site = name.partition("/")
            if not rows.is_floating_point():
                continue
            self._moments(role, site, rows).update(rows)
            if self._top:
                self._keep_top(role, site, rows, index)
        self._rows += len(index["prompt"])

    def _with_difference(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        shared = [name.removeprefix("base/") for name in tensors if name.startswith("base/")]
        extra = {
            f"{DIFFERENCE}/{site}": tensors[f"tuned/{site}"].double() - tensors[f"base/{site}"].double()
            for site in shared
            if tensors.get(f"tuned/{site}") is not None and tensors[f"tuned/{site}"].is_floating_point()
            and tensors[f"tuned/{site}"].shape == tensors[f"base/{site}"].shape
        }  # fmt: skip
        return {**tensors, **extra}

    def _moments(self, role: str, site: str, rows: Tensor) -> StreamingMoments:
        of_role = self.moments.setdefault(role, {})
        if site not in of_role:
            of_role[site] = StreamingMoments(rows.shape[1:], covariance=self._covariance)
        return of_role[site]

    def _keep_top(self, role: str, site: str, rows: Tensor, index: dict[str, list[Any]]) -> None:
        of_role = self.top.setdefault(role, {})
        if site not in of_role:
            of_role[site] = TopActivating(self._top)
        norms = rows.flatten(1).double().norm(dim=1)
        of_role[site].update(norms, index["prompt"], index["position"], index["token"])
