"""Projected gradients on disk: written in shards, resumed where they stop, read one shard at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from workbench.errors import UserError
from workbench.files import room_for_folder, write_json
from workbench.tensor_files import check_seal, write_safetensors
from workbench.typing import Float, Tensor

SHARD = 64
"""Rows per shard."""
NOTE = "store.json"


class FeatureStore:
    """Rows of float16 features, in a folder, or in memory where ``folder`` is None.

    A folder holds ``store.json`` (what the features are of) and one sealed file per 64 rows, so that a call that was
    stopped computes only the shards that are missing.
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self._held: dict[int, Tensor] = {}
        if self.folder is not None:
            self._open(self.folder, dict(about))

    def fill(self, rows: int, make: Callable[[range], Float[Tensor, "row dim"]]) -> int:
        """Make the shards that are missing; returns how many rows were computed."""
        made = 0
        for start in range(0, rows, SHARD):
            wanted = range(start, min(rows, start + SHARD))
            if not self._has(start):
                self._write(start, make(wanted).half())
                made += len(wanted)
        return made

    def parts(self, rows: int) -> Iterator[Float[Tensor, "row dim"]]:
        """The features in float32, shard by shard, in the rows' order."""
        for start in range(0, rows, SHARD):
            yield self._read(start).float()

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        plain = json.loads(json.dumps(about, sort_keys=True, default=str))
        with room_for_folder(folder):
            folder.mkdir(parents=True, exist_ok=True)
        note = folder / NOTE
        if note.is_file():
            if json.loads(note.read_text(encoding="utf-8")) != plain:
                raise UserError(
                    f"{folder} holds gradients of another model, other rows or other settings: give a new folder as "
                    "store."
                )
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and no store of gradients: give a new folder as store.")
        else:
            write_json(note, plain)

    def _path(self, start: int) -> Path:
        assert self.folder is not None
        return self.folder / f"rows-{start:08d}.safetensors"

    def _has(self, start: int) -> bool:
        return start in self._held if self.folder is None else self._path(start).is_file()

    def _write(self, start: int, features: Tensor) -> None:
        if self.folder is None:
            self._held[start] = features
        else:
            write_safetensors(self._path(start), {"features": [features]}, sealed=True)

    def _read(self, start: int) -> Tensor:
        if self.folder is None:
            return self._held[start]
        path, advice = self._path(start), "delete it and call again: its rows are computed anew"
        check_seal(path, advice)
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}); {advice}.") from error
