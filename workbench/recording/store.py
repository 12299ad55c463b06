"""Writing activations to disk as they come, so that a killed run loses one shard and resumes to the same
bytes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import torch
from safetensors import safe_open

from workbench.errors import UserError
from workbench.files import DamagedWarning, room_for, write_bytes
from workbench.folder_lock import FolderLock
from workbench.recording import layout
from workbench.recording.reader import ShardReader
from workbench.recording.resuming import Rest, look_over, missing_steps
from workbench.recording.stored import StoredTensor
from workbench.recording.transfer import Transfer
from workbench.runs.config import config_hash, plain, same_config
from workbench.tensor_files import write_safetensors

__all__ = ["SHARD_BYTES", "ShardReader", "ShardWriter", "StoredTensor"]

SHARD_BYTES = 32 * 2**20
"""A shard is closed once it holds this much."""


class ShardWriter:
    """Appends rows of activations to a folder; use it as a context manager.

    Each ``append`` is one step and never straddles two shards. Opening an unfinished store of the same
    configuration hashes what is there and resumes it: skip the first ``steps_done`` steps and append the rest, and the
    finished files are, byte for byte, those of an uninterrupted run. With ``mend`` a damaged or missing shard in the
    middle costs no other one, also in a finished store: append the steps that :meth:`missing` names. Leaving the
    context after an exception keeps the complete shards. One process writes a folder at a time; a shard is written in
    the background while the next one fills.
    """

    def __init__(
        self, folder: str | Path, config: Mapping[str, Any], *, shard_bytes: int = SHARD_BYTES, mend: bool = False
    ) -> None:
        self.folder = Path(folder)
        with room_for(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
        try:
            self._store = self._open(plain(config), shard_bytes, mend=mend)
            rest = look_over(self.folder, self._store, self._config, mend=mend)
            self._go_on_from(rest)
        except BaseException:
            self._lock.release()
            raise
        self.complete: bool = self._finished is not None and not self._gaps
        """Whether the store was finished already; nothing can be appended then."""
        self.steps_done: int = sum(shard.steps for shard in rest.prefix)
        """How many steps the complete shards hold from the first one on."""
        self.rows_done: int = sum(shard.rows for shard in rest.prefix)
        self._kinds = _kinds(next(iter(rest.shards.values())).path) if rest.shards else None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._writing: Future[None] | None = None
        self._transfer = Transfer()
        self._start_shard()

    def missing(self, total: int) -> list[int]:
        """The numbers of the steps still to be appended, in order, of a recording of ``total`` steps."""
        return missing_steps(self._gaps, total)

    def append(self, tensors: Mapping[str, torch.Tensor], index: Mapping[str, Sequence[Any]] | pa.Table) -> None:
        """Add one step: tensors ``[rows, ...]`` keyed ``role/site`` and, for each row, a value of every index
        column (a mapping of columns, or an Arrow table).

        Every step has the same keys, trailing shapes, dtypes and columns. The tensors are kept until their
        shard is written: do not change them afterwards. Raises :class:`UserError` when the disk is full,
        maybe a step late.
        """
        if self.complete or not self._gaps:
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
        gap = self._gaps[0]
        last_of_gap = gap.stop is not None and len(gap.numbers) == 1
        if self._steps == (gap.stop or 0) - gap.start or (self._bytes >= self._shard_bytes and not last_of_gap):
            self._send_shard()

    def close(self) -> None:
        """Write what is left, merge the index and let go of the folder; the store is complete then."""
        try:
            if not self.complete:
                if self._steps:
                    self._send_shard()
                self._wait()
                if any(gap.stop is not None for gap in self._gaps):
                    raise ValueError(f"steps from {self._gaps[0].start} on are missing in {self.folder}")
                with room_for(self.folder):
                    self._finish()
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

    def _open(self, config: dict[str, Any], shard_bytes: int, *, mend: bool) -> dict[str, Any]:
        """Write or check ``store.json``; a resumed store keeps the shard size it began with.

        Where it is lost, the shards say which configuration they are of.
        """
        self._config = config_hash(config)
        try:
            if (self.folder / layout.STORE).exists():
                store = layout.read_store(self.folder)
                same_config(store["config"], config, self.folder)
                return store
        except layout.DamagedStore as error:
            if not mend:
                raise
            warnings.warn(f"{str(error).partition(';')[0]}; it is written again.", DamagedWarning, stacklevel=2)
        (self.folder / layout.INDEX).unlink(missing_ok=True)
        begun = {"schema": layout.SCHEMA, "config": config, "shard_bytes": shard_bytes}
        layout.write_store(self.folder, begun)
        return begun

    def _go_on_from(self, rest: Rest) -> None:
        self._shard_bytes = int(self._store["shard_bytes"])
        self._shards, self._gaps = rest.shards, list(rest.gaps)
        self._seals = {number: layout.seal_of(shard.path) for number, shard in rest.shards.items()}
        self._finished = rest.finished
        if self._finished is None and "files" in self._store:  # its index is lost, and with it all parts
            self._store = {key: value for key, value in self._store.items() if key != "files"}
            layout.write_store(self.folder, self._store)

    def _finish(self) -> None:
        """The index, then ``store.json`` with all hashes, and the parts are gone."""
        count = len(self._shards)
        parts = [layout.part_path(self.folder, number) for number in range(count)]
        digest = self._finished["index"] if self._finished else layout.merge_parts(self.folder, parts)
        shards = {
            shard.path.name: {
                "rows": shard.rows, "steps": shard.steps, "start": shard.start, "index": shard.part,
                "seal": self._seals[number],
            }
            for number, shard in sorted(self._shards.items())
        }  # fmt: skip
        layout.write_store(self.folder, {**self._store, "files": {"index": digest, "shards": shards}})
        for path in parts:
            path.unlink(missing_ok=True)

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
        gap = self._gaps[0]
        number, note = gap.numbers.pop(0), {"rows": self._rows, "steps": self._steps, "start": gap.start}
        self._writing = self._worker.submit(self._write, number, self._pieces, self._index, note)
        gap.start += self._steps
        if gap.stop is None:
            gap.numbers.append(number + 1)
        elif gap.start == gap.stop:
            if gap.numbers:
                raise ValueError(f"{self.folder}: the shards {gap.numbers} have no steps left to hold")
            self._gaps.pop(0)
        if gap.start - self._steps == self.steps_done:
            self.steps_done += self._steps
            self.rows_done += self._rows
        self._start_shard()

    def _wait(self) -> None:
        """Wait for the shard under way; what went wrong with it is raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(
        self, number: int, pieces: dict[str, list[torch.Tensor]], index: list[pa.Table], note: dict[str, int]
    ) -> None:
        """The part of the index, then the sealed shard that holds its hash: a shard that is there is whole."""
        path, part = layout.shard_path(self.folder, number), layout.part_path(self.folder, number)
        if not (self.folder / layout.STORE).is_file():
            raise UserError(f"{self.folder} was moved or deleted while it was written; give the same command again.")
        data = layout.part_bytes(pa.concat_tables(index, promote_options="permissive").combine_chunks())
        digest = hashlib.sha256(data).hexdigest()
        if self._finished is None:  # else the merged index has its rows
            write_bytes(part, data)
        try:
            seal = write_safetensors(path, pieces, {**note, "index": digest, "config": self._config}, sealed=True)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        assert seal is not None
        self._shards[number] = layout.Shard(path, note["rows"], note["steps"], note["start"], digest)
        self._seals[number] = seal


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
