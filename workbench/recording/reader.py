"""Opening a finished store of activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import UserError, unknown_name
from workbench.recording import layout
from workbench.recording.stored import MappedShards, StoredTensor


class ShardReader(Mapping[str, dict[str, StoredTensor]]):
    """A finished store: ``reader["tuned"]["blocks.3.attn.hook_z"]`` is a :class:`StoredTensor` ``[row,
    ...]``.

    With ``check`` every byte is hashed before any is read, and damage is a :class:`UserError` that names the file.
    """

    def __init__(self, folder: str | Path, *, check: bool = True) -> None:
        self.folder = Path(folder)
        store = layout.read_store(self.folder)
        self.config: dict[str, Any] = store["config"]
        if not (self.folder / layout.INDEX).is_file() and "files" not in store:
            raise UserError(f"The store {self.folder} is unfinished; run the same record() again to resume it.")
        shards = MappedShards(layout.finished_shards(self.folder, store, check=check))
        self.rows: int = shards.rows
        try:
            indexed = pq.read_metadata(self.folder / layout.INDEX).num_rows
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.folder / layout.INDEX} is damaged ({error}); restore it or record again."
            ) from error
        if indexed != self.rows:
            raise UserError(
                f"The store {self.folder} has {self.rows} rows of activations and an index of {indexed}; "
                "a shard is missing. Restore it or record again."
            )
        self._roles: dict[str, dict[str, StoredTensor]] = _Known("role in this store")
        for name in shards.names():
            role, _, site = name.partition("/")
            sites = self._roles.setdefault(role, _Known(f"site of {role!r} in this store"))
            sites[site] = StoredTensor(shards, name)

    @cached_property
    def index(self) -> pd.DataFrame:
        """One line per row of the tensors, in their order."""
        return pd.read_parquet(self.folder / layout.INDEX)

    def __getitem__(self, role: str) -> dict[str, StoredTensor]:
        return self._roles[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)


class _Known(dict[str, Any]):
    """A dict that answers an unknown name with the known ones."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def __missing__(self, name: str) -> NoReturn:
        raise unknown_name(self._what, name, self)
