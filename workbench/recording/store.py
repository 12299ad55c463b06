"""Writing activations to disk as they come, so that a killed run loses one shard and resumes to the same
bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import torch
from safetensors import safe_open

from workbench.files import remove_partials, room_for, write_json
from workbench.folder_lock import FolderLock
from workbench.recording import layout
from workbench.recording.reader import ShardReader
from workbench.recording.stored import StoredTensor
from workbench.recording.transfer import Transfer
from workbench.runs.config import plain, same_config
from workbench.tensor_files import write_safetensors

__all__ = ["SHARD_BYTES", "ShardReader", "ShardWriter", "StoredTensor"]

SHARD_BYTES = 32 * 2**20
"""A shard is closed once it holds this much."""


class ShardWriter:
    """Appends rows of activations to a folder; use it as a context manager.

    Each ``append`` is one step and never straddles two shards. Opening an unfinished store of the same
    configuration resumes it: skip the first ``steps_done`` steps and append the rest, and the finished files
    are, byte for byte, those of an uninterrupted run. Leaving the context after an exception keeps the
    complete shards. One process writes a folder at a time; a shard is written in the background while the
    next one fills.
    """

    def __init__(self, folder: str | Path, config: Mapping[str, Any], *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = Path(folder)
        with room_for(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
        try:
            self._shard_bytes = self._open(plain(config), shard_bytes)
            done = layout.complete_shards(self.folder)
            self._forget_after(len(done))
        except BaseException:
            self._lock.release()
            raise
        self.complete: bool = (self.folder / layout.INDEX).exists()
        """Whether the store was finished already; nothing can be appended then."""
        self.steps_done: int = sum(shard.steps for shard in done)
        """How many steps the complete shards hold; the next ``append`` is step ``steps_done``."""
        self.rows_done: int = sum(shard.rows for shard in done)
        self._shards = len(done)
        self._kinds = _kinds(done[0].path) if done else None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._writing: Future[None] | None = None
        self._transfer = Transfer()
        self._start_shard()

    def append(self, tensors: Mapping[str, torch.Tensor], index: Mapping[str, Sequence[Any]] | pa.Table) -> None:
        """Add one step: tensors ``[rows, ...]`` keyed ``role/site`` and, for each row, a value of every index
        column (a mapping of columns, or an Arrow table).

        Every step has the same keys, trailing shapes, dtypes and columns. The tensors are kept until their
        shard is written: do not change them afterwards. Raises :class:`UserError` when the disk is full,
        maybe a step late.
        """
        if self.complete:
            raise ValueError(f"{self.folder} is complete; nothing can be appended")
        table = index if isinstance(index, pa.Table) else _table(index)
        rows = table.num_rows
        self._check(tensors, rows)
        for name, tensor in self._transfer.begin(tensors).items():
            self._pieces.setdefault(name, []).append(tensor.detach())
        self._index.append(table)
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self._rows += rows
        self._steps += 1
        if self._bytes >= self._shard_bytes:
            self._send_shard()

    def close(self) -> None:
        """Write what is left, merge the index and let go of the folder; the store is complete then."""
        try:
            if not self.complete:
                if self._steps:
                    self._send_shard()
                self._wait()
                parts = [layout.part_path(self.folder, number) for number in range(self._shards)]
                with room_for(self.folder):
                    layout.merge_parts(self.folder, parts)
                self.complete = True
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the folder without finishing: complete shards stay, rows of an unfinished shard are
        dropped."""
        self._transfer.close()
        self._worker.shutdown(wait=True)
        self._start_shard()
        self._lock.release()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _open(self, config: dict[str, Any], shard_bytes: int) -> int:
        """Write or check ``store.json``; a resumed store keeps the shard size it began with."""
        if not (self.folder / layout.STORE).exists():
            begun = {"schema": layout.SCHEMA, "config": config, "shard_bytes": shard_bytes}
            write_json(self.folder / layout.STORE, begun)
            return shard_bytes
        store = layout.read_store(self.folder)
        same_config(store["config"], config, self.folder)
        return int(store["shard_bytes"])

    def _forget_after(self, complete: int) -> None:
        """Delete what a killed writer left behind the complete shards."""
        remove_partials(self.folder)
        if (self.folder / layout.INDEX).exists():
            for part in self.folder.glob(f"shard-*.{layout.INDEX}"):
                part.unlink()
            return
        for path in self.folder.glob("shard-*"):
            if int(path.name[6:11]) >= complete:
                path.unlink()

    def _start_shard(self) -> None:
        self._pieces: dict[str, list[torch.Tensor]] = {}
        self._index: list[pa.Table] = []
        self._bytes = self._rows = self._steps = 0

    def _check(self, tensors: Mapping[str, torch.Tensor], rows: int) -> None:
        _check_lengths(tensors, rows)
        kinds = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in tensors.items()}
        self._kinds = self._kinds or kinds
        if kinds != self._kinds:
            raise ValueError(f"this step brings {kinds}; the store holds {self._kinds}")

    def _send_shard(self) -> None:
        """Hand the filled shard to the writing thread, once that is done with the one before."""
        self._transfer.finish()
        self._wait()
        number, note = self._shards, {"rows": self._rows, "steps": self._steps}
        self._writing = self._worker.submit(self._write, number, self._pieces, self._index, note)
        self.steps_done += self._steps
        self.rows_done += self._rows
        self._shards += 1
        self._start_shard()

    def _wait(self) -> None:
        """Wait for the shard under way; what went wrong with it is raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(
        self, number: int, pieces: dict[str, list[torch.Tensor]], index: list[pa.Table], note: dict[str, int]
    ) -> None:
        write_safetensors(layout.shard_path(self.folder, number), pieces, note)
        table = pa.concat_tables(index, promote_options="permissive").combine_chunks()
        layout.write_part(layout.part_path(self.folder, number), table)


def _table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    _check_lengths(columns, len(next(iter(columns.values()))))
    return pa.table(dict(columns))


def _check_lengths(columns: Mapping[str, Any], rows: int) -> None:
    if wrong := [name for name, values in columns.items() if len(values) != rows]:
        raise ValueError(f"{wrong[0]!r} has {len(columns[wrong[0]])} rows and the index has {rows}")


def _kinds(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> trailing shape and dtype of the tensors of a shard."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in tensors.items()}
