"""How a store of activations lies on disk.

``store.json`` (configuration), ``shard-00000.safetensors`` … (flat tensors ``[row, ...]`` named
``role/site``) and ``index.parquet`` (one line per row). While a store is being written, each shard has its
own part of the index; a shard counts once its part is there, and the store is complete once the parts are
merged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from workbench.errors import UserError
from workbench.files import atomic, remove_partials

SCHEMA = 1
STORE = "store.json"
INDEX = "index.parquet"


class Shard(NamedTuple):
    """One file of tensors."""

    path: Path
    rows: int
    steps: int
    """How many calls of ``append`` it holds."""


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def part_path(folder: Path, number: int) -> Path:
    """The index of one shard, until the parts are merged."""
    return folder / f"shard-{number:05d}.{INDEX}"


def remove(folder: Path) -> None:
    """Delete a store; files of others in its folder stay, and then the folder too."""
    remove_partials(folder)
    for path in (*folder.glob("shard-*.safetensors"), *folder.glob(f"shard-*.{INDEX}"), folder / INDEX, folder / STORE):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def read_store(folder: Path) -> dict[str, Any]:
    """``store.json``; a missing, broken or newer one is a :class:`UserError`."""
    path = folder / STORE
    if not path.is_file():
        raise UserError(f"{folder} is no store of activations: it has no {STORE}; give a folder that record() wrote.")
    try:
        store = json.loads(path.read_text(encoding="utf-8"))
        schema, _ = int(store["schema"]), store["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; record into another folder.") from error
    if schema > SCHEMA:
        raise UserError(f"{folder} was written by a newer Tunescope (schema {schema}); update to read it.")
    return store


def read_shard(path: Path) -> Shard:
    """Rows and steps from the shard's header; a truncated or foreign file is a :class:`UserError`."""
    try:
        with safe_open(str(path), framework="pt") as file:
            note = json.loads(file.metadata()["tunescope"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable shard ({error}); record again into another folder.") from error
    return Shard(path, note["rows"], note["steps"])


def complete_shards(folder: Path) -> list[Shard]:
    """The shards from the first on that are whole: tensors and index part both in place."""
    found: list[Shard] = []
    finished = (folder / INDEX).exists()
    while (path := shard_path(folder, len(found))).exists():
        if not finished and not part_path(folder, len(found)).exists():
            break
        found.append(read_shard(path))
    return found


def write_part(target: Path, table: pa.Table) -> None:
    with atomic(target) as partial:
        pq.write_table(table, partial, compression="zstd")


def merge_parts(folder: Path, parts: Iterable[Path]) -> None:
    """Write ``index.parquet`` from the parts, one row group each, then delete them."""
    paths = list(parts)
    schemas = [pq.read_schema(path) for path in paths]
    # A column that is empty throughout one part (no groups there) has no type in it.
    schema = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
    with atomic(folder / INDEX) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for path in paths:
            writer.write_table(pq.read_table(path).cast(schema))
    for path in paths:
        path.unlink()
