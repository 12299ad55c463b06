"""Where recorded rows go: memory, shards on disk, or statistics that do not grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from workbench.recording import layout
from workbench.recording.capture import nonfinite_rows
from workbench.recording.recording import Recording, flagged_in
from workbench.recording.row_index import Rows
from workbench.recording.row_order import in_order, row_order
from workbench.recording.statistics import StreamingMoments, TopActivating
from workbench.recording.store import ShardWriter
from workbench.recording.transfer import Transfer
from workbench.typing import Tensor

DIFFERENCE = "difference"


class Sink:
    """Takes the rows of one window after another; a context that ends well or keeps what is complete."""

    in_order = False
    """Whether rows must come in the order of the prompts; otherwise each batch comes as soon as it was run."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def missing(self, windows: int) -> list[int]:
        """Which of so many windows are to be recorded: all that an interrupted run had not stored."""
        return list(range(windows))

    def add(self, tensors: dict[str, Tensor], rows: Rows) -> None:
        """Some prompts: tensors [row, ...] keyed ``role/site``, and where these rows come from."""
        raise NotImplementedError

    def recording(self, config: dict[str, Any]) -> Recording:
        """What was recorded, once the context is left."""
        raise NotImplementedError

    def part(self) -> Sink:
        """An empty sink that another process can fill, to be merged into this one."""
        return Gathered(self.in_order)

    def merge(self, part: Sink) -> None:
        """Take in what such a part was given, as if it had come here."""
        assert isinstance(part, Gathered)
        for tensors, index in part.added:
            self.add(tensors, Rows.of(index))

    def discard(self) -> None:
        """Leave nothing behind of a recording that came to nothing."""


class Gathered(Sink):
    """Keeps what it is given as it came, in main memory."""

    def __init__(self, in_order: bool) -> None:
        self.in_order = in_order
        self.added: list[tuple[dict[str, Tensor], pa.Table]] = []

    def add(self, tensors: dict[str, Tensor], rows: Rows) -> None:
        self.added.append(({name: values.cpu() for name, values in tensors.items()}, rows.table()))


class MemorySink(Sink):
    """Keeps every row in main memory; they are put into the order of the prompts at the end, in one copy."""

    def __init__(self) -> None:
        self._rows: list[Rows] = []
        self._pieces: dict[str, list[Tensor]] = {}
        self._transfer = Transfer()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transfer.close()
        if kind is None:
            self._transfer.finish()

    def add(self, tensors: dict[str, Tensor], rows: Rows) -> None:
        for name, values in self._transfer.begin(tensors).items():
            self._pieces.setdefault(name, []).append(values)
        self._rows.append(rows)

    def recording(self, config: dict[str, Any]) -> Recording:
        prompt, position = (
            _together([row.prompt for row in self._rows]),
            _together([row.position for row in self._rows]),
        )
        order = row_order(torch.from_numpy(prompt), torch.from_numpy(position))
        tensors: dict[str, dict[str, Tensor]] = {}
        for name in list(self._pieces):
            role, _, site = name.partition("/")
            tensors.setdefault(role, {})[site] = in_order(self._pieces.pop(name), order)
        return Recording(
            partial(_index, self._rows, order), config, tensors, n_rows=len(prompt),
            known_nonfinite=() if all(row.finite for row in self._rows) else None,
        )  # fmt: skip


def _together(pieces: list[np.ndarray]) -> np.ndarray:
    alone = len(pieces) == 1 and pieces[0].flags.writeable  # from another process they can come read-only
    return pieces[0] if alone else np.concatenate(pieces)


def _index(rows: list[Rows], order: Tensor | None) -> pd.DataFrame:
    table = pa.concat_tables([row.table() for row in rows], promote_options="permissive")
    table = table if order is None else table.take(pa.array(order.numpy()))
    return table.to_pandas(use_threads=False)


class StoreSink(Sink):
    """Writes shards; see :class:`ShardWriter`."""

    in_order = True

    def __init__(self, folder: Path, config: Mapping[str, Any], shard_bytes: int) -> None:
        self._folder = folder
        self._writer = ShardWriter(folder, config, shard_bytes=shard_bytes, mend=True)

    def missing(self, windows: int) -> list[int]:
        return self._writer.missing(windows)

    def add(self, tensors: dict[str, Tensor], rows: Rows) -> None:
        self._writer.append(tensors, rows.table())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def recording(self, config: dict[str, Any]) -> Recording:  # noqa: ARG002
        return Recording.load(self._folder, check=False)  # just written, or checked when it was opened

    def discard(self) -> None:
        layout.remove(self._folder)


class StatisticsSink(Sink):
    """Float64 moments per model and site, and of tuned - base; memory does not grow with the prompts."""

    def __init__(self, *, covariance: bool, top: int) -> None:
        self._covariance, self._top = covariance, top
        self._rows = 0
        self._moments: dict[str, dict[str, Any]] = {}
        self._tops: dict[str, dict[str, Any]] = {}
        self._nonfinite: list[tuple[str, str, int]] = []

    def add(self, tensors: dict[str, Tensor], rows: Rows) -> None:
        frame = rows.table().to_pandas(use_threads=False)
        self._nonfinite += flagged_in(frame)
        for role, site, values in self._with_difference(tensors):
            if not values.is_floating_point():
                continue
            bad = None if rows.finite else nonfinite_rows({site: values}).get(site)
            if bad is not None:
                values, frame_ = values[~bad.to(values.device)], frame[~bad.numpy()]
            else:
                frame_ = frame
            self._moments_of(role, site, values).update(values)
            if self._top:
                self._keep_top(role, site, values, frame_)
        self._rows += len(frame)

    def part(self) -> StatisticsSink:
        return StatisticsSink(covariance=self._covariance, top=self._top)

    def merge(self, part: Sink) -> None:
        """Counts, means and spreads by the pairwise update, the largest rows among both."""
        assert isinstance(part, StatisticsSink)
        for role, sites in part._moments.items():
            for site, moments in sites.items():
                empty = StreamingMoments(moments.shape, covariance=self._covariance)
                self._moments.setdefault(role, {}).setdefault(site, empty).merge(moments)
        for role, sites in part._tops.items():
            for site, top in sites.items():
                self._tops.setdefault(role, {}).setdefault(site, TopActivating(self._top)).merge(top)
        self._rows += part._rows
        self._nonfinite += part._nonfinite

    def recording(self, config: dict[str, Any]) -> Recording:
        return Recording(
            pd.DataFrame({"prompt": [], "position": []}), config, moments=self._moments, top=self._tops,
            n_rows=self._rows, known_nonfinite=tuple(sorted(set(self._nonfinite))),
        )  # fmt: skip

    def _with_difference(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        """(role, site, rows), the differences made one at a time: they are in float64."""
        for name, rows in tensors.items():
            role, _, site = name.partition("/")
            yield role, site, rows
            tuned = tensors.get(f"tuned/{site}") if role == "base" else None
            if tuned is not None and tuned.is_floating_point() and tuned.shape == rows.shape:
                yield DIFFERENCE, site, tuned.double() - rows.double()

    def _moments_of(self, role: str, site: str, rows: Tensor) -> StreamingMoments:
        of_role = self._moments.setdefault(role, {})
        if site not in of_role:
            of_role[site] = StreamingMoments(tuple(rows.shape[1:]), covariance=self._covariance)
        return of_role[site]

    def _keep_top(self, role: str, site: str, rows: Tensor, index: pd.DataFrame) -> None:
        of_role = self._tops.setdefault(role, {})
        if site not in of_role:
            of_role[site] = TopActivating(self._top)
        norms = rows.flatten(1).double().norm(dim=1)
        of_role[site].update(norms, index["prompt"].tolist(), index["position"].tolist(), index["token_id"].tolist())
