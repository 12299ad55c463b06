"""How a store of activations lies on disk.

``store.json`` (configuration), ``shard-00000.safetensors`` … (flat tensors ``[row, ...]`` named
``role/site``) and ``index.parquet`` (one line per row). While a store is being written, each shard has its
own part of the index, written before it. Every hash is made when the bytes are written: a shard is sealed and holds
the hash of its part of the index; ``store.json`` of a finished store holds the seals of all shards and the hash of the
index, and counts as finished only with them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from workbench.errors import UserError
from workbench.files import atomic, file_digest, file_text, remove_partials
from workbench.sealed_json import read_sealed, write_sealed
from workbench.tensor_files import check_seal, read_seal

SCHEMA = 1
STORE = "store.json"
INDEX = "index.parquet"
_AGAIN = "restore it, or give the same command again: what is damaged is recorded again"


class DamagedStore(UserError):
    """``store.json`` is not what was written."""


class Shard(NamedTuple):
    """One file of tensors."""

    path: Path
    rows: int
    steps: int
    """How many calls of ``append`` it holds."""
    start: int = 0
    """The number of its first step."""
    part: str | None = None
    """Sha256 of its part of the index; None for a shard of an older version."""
    config: str | None = None
    """Hash of the configuration it was recorded with."""


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def part_path(folder: Path, number: int) -> Path:
    """The index of one shard, until the parts are merged."""
    return folder / f"shard-{number:05d}.{INDEX}"


def shard_number(path: Path) -> int | None:
    """The number of a shard, or of a part of the index, by its name; None for any other file."""
    number, _, ending = path.name.removeprefix("shard-").partition(".")
    return int(number) if number.isdecimal() and len(number) == 5 and ending in ("safetensors", INDEX) else None


def numbers(folder: Path) -> list[int]:
    """The numbers of all shards of which something is there."""
    taken = {shard_number(path) for path in folder.glob("shard-*")}
    return sorted(number for number in taken if number is not None)


def remove_shards(folder: Path, numbers: Iterable[int]) -> None:
    """Delete shards with their parts of the index."""
    for number in numbers:
        shard_path(folder, number).unlink(missing_ok=True)
        part_path(folder, number).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete a store; files of others in its folder stay, and then the folder too."""
    remove_partials(folder)
    remove_shards(folder, numbers(folder))
    for name in (INDEX, STORE):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def read_store(folder: Path) -> dict[str, Any]:
    """``store.json``; a missing, broken or newer one is a :class:`UserError`."""
    path = folder / STORE
    if not path.is_file():
        raise UserError(f"{folder} is no store of activations: it has no {STORE}; give a folder that record() wrote.")
    store = _plain_store(path)
    if store["schema"] > SCHEMA:
        raise UserError(f"{folder} was written by a newer Tunescope (schema {store['schema']}); update to read it.")
    try:
        return read_sealed(path, "restore it, or record into another folder", older="files" not in store)
    except UserError as error:
        raise DamagedStore(str(error)) from error


def _plain_store(path: Path) -> dict[str, Any]:
    try:
        store = json.loads(file_text(path))
        whole = isinstance(store["schema"], int) and isinstance(store["config"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedStore(f"{path} is damaged; restore it, or record into another folder.") from error
    if not whole or not isinstance(store.get("shard_bytes"), int):
        raise DamagedStore(f"{path} is damaged; restore it, or record into another folder.")
    return store


def write_store(folder: Path, store: dict[str, Any]) -> None:
    """Replace ``store.json`` in one step, sealed."""
    write_sealed(folder / STORE, store)


def read_shard(path: Path) -> Shard:
    """Rows and steps from the shard's header; a truncated or foreign file is a :class:`UserError`."""
    try:
        with safe_open(str(path), framework="pt") as file:
            note = json.loads(file.metadata()["tunescope"])
            counts = int(note["rows"]), int(note["steps"]), int(note.get("start", 0))
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable shard ({error}); {_AGAIN}.") from error
    return Shard(path, *counts, note.get("index"), note.get("config"))


def seal_of(path: Path) -> str:
    """The seal of a shard, read and not checked; empty for one of an older version."""
    return read_seal(path) or ""


def whole_shard(path: Path) -> Shard:
    """A shard whose bytes, and those of its part of the index where that is there, are those that were written."""
    shard = read_shard(path)
    check_seal(path, _AGAIN)
    part = path.with_name(path.name.replace("safetensors", INDEX))
    if part.exists() and (shard.part is None or file_digest(part) != shard.part):
        raise UserError(f"{part} is damaged: its bytes are not those that were written (sha256 differs); {_AGAIN}.")
    return shard


def finished_shards(folder: Path, store: dict[str, Any], *, check: bool = True) -> list[Shard]:
    """The shards of a finished store; with ``check``, every byte of them and of the index is hashed before.

    Raises :class:`UserError` naming the first file that is missing or damaged. A store of an older version, which
    holds no hashes, is not checked.
    """
    files: dict[str, Any] | None = store.get("files")
    if files is None:
        return _unsealed_shards(folder)
    shards = []
    for name, entry in sorted(files["shards"].items()):
        problem = shard_problem(folder, name, entry, check=check)
        if problem is not None:
            raise UserError(problem)
        shards.append(Shard(folder / name, entry["rows"], entry["steps"], entry["start"], entry["index"]))
    if check and (problem := index_problem(folder, files["index"])):
        raise UserError(problem)
    return shards


def shard_problem(folder: Path, name: str, entry: dict[str, Any], *, check: bool = True) -> str | None:
    """What is wrong with a shard of a finished store, as a sentence; None for a whole one."""
    path = folder / name
    if not path.is_file():
        return f"{path} is gone, a shard is missing; {_AGAIN}."
    try:
        read_shard(path)
        seal = check_seal(path, _AGAIN) if check else entry["seal"]
    except UserError as error:
        return str(error)
    return None if seal == entry["seal"] else f"{path} is not the shard that was written here; {_AGAIN}."


def index_problem(folder: Path, digest: str) -> str | None:
    """What is wrong with the index of a finished store, as a sentence; None for a whole one."""
    path = folder / INDEX
    if not path.is_file():
        return f"{path} is gone; {_AGAIN}."
    if file_digest(path) != digest:
        return f"{path} is damaged: its bytes are not those that were written (sha256 differs); {_AGAIN}."
    return None


def _unsealed_shards(folder: Path) -> list[Shard]:
    """The shards of a finished store that was written before shards were sealed."""
    shards: list[Shard] = []
    while (path := shard_path(folder, len(shards))).exists():
        shards.append(read_shard(path))
    return shards


def part_bytes(table: pa.Table) -> bytes:
    """A part of the index, as its file holds it."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def merge_parts(folder: Path, parts: Iterable[Path]) -> str:
    """Write ``index.parquet`` from the parts, one row group each; returns its sha256."""
    paths = list(parts)
    schemas = [pq.read_schema(path) for path in paths]
    # A column that is empty throughout one part (no groups there) has no type in it.
    schema = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
    with atomic(folder / INDEX) as partial:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for path in paths:
                writer.write_table(pq.read_table(path).cast(schema))
        return file_digest(partial)
