"""One run: a folder with a manifest, tables, tensors and JSON, each file whole or absent."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workbench.cards import card
from workbench.errors import UserError
from workbench.files import DamagedWarning, atomic, file_text, remove_partials, room_for_folder, write_json, write_text
from workbench.folder_lock import FolderLock
from workbench.jsonable import jsonable
from workbench.runs.checking import verify_run
from workbench.runs.config import config_hash, plain, same_config
from workbench.runs.manifest import (
    MANIFEST,
    Manifest,
    State,
    hash_file,
    hash_files,
    read_manifest,
    write_manifest,
)
from workbench.runs.places import PROMPTS, inside, whole_path

if TYPE_CHECKING:
    import pandas as pd

    from workbench.prompts import Prompts


@contextmanager
def _readable(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """What reading a damaged file raises becomes a sentence."""
    try:
        yield
    except damage as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{path} is damaged ({said}); restore it or run again.") from error


class Run:
    """A run's folder. As a context manager it has one writer, and ends complete, failed with the error's sentence, or
    interrupted (Ctrl-C).

    Made by ``runs.create`` or ``runs.open``. Names of files are relative, ``/`` between folders; the ending
    is added.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        self._lock: FolderLock | None = None

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def state(self) -> State:
        return self._manifest.state

    @property
    def config(self) -> dict[str, Any]:
        return self._manifest.config

    @property
    def is_complete(self) -> bool:
        return self._manifest.state == "complete"

    def file(self, name: str) -> Path:
        """The path of a file or folder of this run; a name that leads out of it is a :class:`UserError`."""
        return inside(self.path, name)

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write a DataFrame as ``name.parquet``, without its index."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = self._target(name, ".parquet")
        with atomic(target) as partial:
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), partial, compression="zstd")
        return target

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> Path:
        """Write named torch tensors as ``name.safetensors``."""
        from workbench.tensor_files import write_safetensors

        target = self._target(name, ".safetensors")
        write_safetensors(target, {key: [tensor] for key, tensor in tensors.items()})
        return target

    def write_json(self, name: str, payload: Any) -> Path:
        """Write plain values, arrays, tables or dataclasses as ``name.json`` (NaN becomes null)."""
        target = self._target(name, ".json")
        write_json(target, jsonable(payload, name))
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Write UTF-8 text under ``name``, ending and all."""
        target = self._target(name, "")
        write_text(target, text)
        return target

    def read_table(self, name: str) -> pd.DataFrame:
        """The table ``name.parquet``; as all reading, a :class:`UserError` where it is not what the run ended with."""
        import pandas as pd
        import pyarrow as pa

        path = self._existing(name, ".parquet")
        with _readable(path, OSError, ValueError, pa.ArrowException):
            return pd.read_parquet(path)

    def read_tensors(self, name: str) -> dict[str, Any]:
        """The tensors of ``name.safetensors``."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._existing(name, ".safetensors")
        with _readable(path, OSError, SafetensorError):
            return load_file(path)

    def read_json(self, name: str) -> Any:
        """The values of ``name.json``."""
        path = self._existing(name, ".json")
        with _readable(path, OSError, ValueError, RecursionError):
            return json.loads(file_text(path))

    def note(self, **provenance: Any) -> None:
        """Add to the provenance in the manifest."""
        added = plain({**self._manifest.provenance, **provenance})
        self._replace(provenance=added)

    def keep_pair(self, base: str, tuned: str, prompts: Prompts | None = None, **more: Any) -> None:
        """Note which two models the run is about, and write their prompts: it can be steered from, from any folder.

        Args:
            base: a folder or hub id; a folder is kept as its whole path.
            tuned: likewise.
            prompts: they become the file ``workbench.runs.places.PROMPTS`` of the run.
            more: further plain values about the pair, such as the files of its results.
        """
        pair = {"base": whole_path(base), "tuned": whole_path(tuned), **more}
        if prompts is not None:
            self.file(PROMPTS).parent.mkdir(exist_ok=True)
            prompts.save(self.file(PROMPTS))
            pair["prompts"] = PROMPTS
        self.note(pairs={"pair": pair})

    def finish(self) -> None:
        """Hash every file and mark the run complete."""
        self._end("complete", None)

    def fail(self, reason: str) -> None:
        """Keep what is there, hashed, and mark the run failed with ``reason``."""
        self._end("failed", reason)

    def reopen(self) -> None:
        """Mark an ended run as running, so that files can be added and it can be finished again.

        Its files are hashed before: one that is not what the run ended with is deleted with a warning, so that it is
        made again and never sealed as it lies there. Files that no run wrote are a :class:`UserError`.
        """
        self._drop_damaged()
        self._replace(state="running", error=None, files={})

    def _drop_damaged(self) -> None:
        """Delete what is not what an ended run ended with."""
        if self._manifest.state not in ("complete", "failed"):
            return
        seen = verify_run(self.path)
        if seen.foreign and self.is_complete:
            named = ", ".join(seen.foreign[:3])
            raise UserError(f"{self.path} holds files that no run wrote ({named}): move them away and run again.")
        for name in (*seen.changed, *seen.missing):
            warnings.warn(f"{self.file(name)} is not what the run ended with; it is made again.", DamagedWarning, 3)
            self.file(name).unlink(missing_ok=True)

    def hold(self) -> None:
        """Be the run's only writer from here on; ``with run`` does so by itself. Another one is a
        :class:`UserError`."""
        if self._lock is None:
            self._lock = FolderLock(self.path)

    def let_go(self) -> None:
        """Let another write; doing so twice is no error."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not (self.path / MANIFEST).is_file():
                raise UserError(
                    f"{self.path} was moved or deleted while it was written; what was done is where it went, and the "
                    "same command with that folder goes on from there."
                ) from error
            if error is None:
                self.finish()
            elif isinstance(error, Exception):
                self.fail(str(error) or type(error).__name__)
            else:
                self._replace(state="interrupted")
                error.add_note(f"{self.path} keeps what is done, and the same command goes on from there.")
        finally:
            self.let_go()

    def __repr__(self) -> str:
        return f"Run({self.path}, {self._manifest.kind}, {self.state})"

    def _repr_html_(self) -> str:
        files = self._manifest.files
        options = {f"config: {name}": value for name, value in self.config.items()}
        facts = {"folder": self.path, "kind": self._manifest.kind, "state": self.state, "files": len(files), **options}
        return card(f"Run {self.name}", facts, notes=[self._manifest.error] if self._manifest.error else [])

    def _end(self, state: State, reason: str | None) -> None:
        remove_partials(self.path)
        self._replace(state=state, error=reason, files=hash_files(self.path))

    def _replace(self, **changes: Any) -> None:
        changed = self._manifest.model_copy(update=changes)
        write_manifest(self.path, changed)
        self._manifest = changed

    def _target(self, name: str, ending: str) -> Path:
        if self._manifest.state != "running":
            raise UserError(f"The run {self.path} has ended ({self.state}); call reopen() before writing to it.")
        target = self._named(name, ending)
        if target == self.path / MANIFEST:
            raise UserError(f"{MANIFEST} is the run's own manifest; choose another name.")
        return target

    def _named(self, name: str, ending: str) -> Path:
        inside(self.path, name)
        return inside(self.path, name if name.endswith(ending) else name + ending)

    def _existing(self, name: str, ending: str) -> Path:
        path = self._named(name, ending)
        if not path.is_file():
            raise UserError(f"The run {self.path} has no file {path.name}; its state is {self.state}.")
        entry = self._manifest.files.get(path.relative_to(self.path).as_posix())
        if entry is not None and hash_file(path) != entry:
            raise UserError(
                f"{path} is not the file that the run ended with (sha256 differs); restore it or run again."
            )
        return path


def create_run(
    home: str | Path,
    name: str | None = None,
    *,
    kind: str,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> Run:
    """A run ``name`` in the folder ``home``: new, or the one that is there when its configuration is the
    same.

    One that was interrupted or failed is running again, and its files are kept for the caller to resume from;
    a complete one is hashed and returned as it is (``is_complete``), or as running where a file of it is damaged or
    missing, which the caller makes again; one that another process writes is refused. Without a
    name, the configuration's hash gives one, so asking twice finds the same run. Another configuration, or a folder
    with other things, is a :class:`UserError`.
    """
    wanted = plain(config)
    with room_for_folder(Path(home)):
        Path(home).mkdir(parents=True, exist_ok=True)
    path = inside(Path(home), name if name is not None else f"{kind}-{config_hash(wanted)[:10]}")
    with room_for_folder(path):
        there = (path / MANIFEST).exists()
    if there:
        run = open_run(path)
        same_config({"kind": run.manifest.kind, **run.config}, {"kind": kind, **wanted}, path)
        if not run.is_complete or _is_damaged(path):
            with FolderLock(path):  # what another process is writing is not ours to clean up
                remove_partials(path)
                run.reopen()
        return run
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is no run; give a new or an empty folder.")
    made = Manifest(kind=kind, config=wanted, provenance=plain(provenance or {}))
    with room_for_folder(path):
        path.mkdir(exist_ok=True, parents=True)
    write_manifest(path, made)
    return Run(path, made)


def _is_damaged(path: Path) -> bool:
    """Whether a file of the run in ``path`` is gone or changed."""
    seen = verify_run(path)
    return bool(seen.changed or seen.missing)


def create_run_at(
    folder: str | Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> Run:
    """As :func:`create_run`, at the path a person gave (``--out runs/x``)."""
    path = Path(folder).absolute()
    return create_run(path.parent, path.name, kind=kind, config=config, provenance=provenance)


def open_run(path: str | Path) -> Run:
    """The run in the folder ``path``; anything else is a :class:`UserError`."""
    folder = Path(path)
    return Run(folder, read_manifest(folder))
