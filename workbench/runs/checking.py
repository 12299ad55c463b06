"""Whether a run's files are still those it was finished with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.cards import counted
from workbench.files import PARTIAL
from workbench.runs.manifest import MANIFEST, FileEntry, State, file_names, hash_file, read_manifest
from workbench.runs.places import inside


@dataclass(frozen=True)
class Verification:
    """What re-hashing a run found; names are relative to its folder."""

    path: Path
    state: State
    checked: int
    """How many files of the manifest are there and were hashed."""
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    foreign: tuple[str, ...]
    """Files the manifest does not know, half-written ones and links among them."""

    @property
    def ok(self) -> bool:
        """True for a complete run whose files are all there, unchanged, with nothing besides."""
        return self.state == "complete" and not (self.missing or self.changed or self.foreign)

    def __str__(self) -> str:
        if self.ok:
            return f"{self.path}: {counted(self.checked, 'file')}, unchanged."
        problems = [
            f"{len(names)} {what} ({', '.join(names[:10])}{', …' if len(names) > 10 else ''})"
            for what, names in (("missing", self.missing), ("changed", self.changed), ("foreign", self.foreign))
            if names
        ]
        state = [] if self.state == "complete" else [f"the run is {self.state}, not complete"]
        return f"{self.path}: {'; '.join(state + problems)}."


def _is(file: Path, entry: FileEntry) -> bool:
    """Whether a file has the bytes it should; one that cannot be read has not."""
    try:
        return file.stat().st_size == entry.size and hash_file(file) == entry
    except OSError:
        return False


def verify_run(path: str | Path) -> Verification:
    """Hash every file of the run again and name each that is missing, changed or foreign."""
    folder = Path(path)
    manifest = read_manifest(folder)
    missing, changed = [], []
    for name, entry in sorted(manifest.files.items()):
        file = inside(folder, name)
        if file.is_symlink() or not file.is_file():
            missing.append(name)
        elif not _is(file, entry):
            changed.append(name)
    partial = [path.relative_to(folder).as_posix() for path in folder.rglob(f"{PARTIAL}*")]
    there = [name for name in (*file_names(folder), *partial) if name != MANIFEST]
    links = [name for name in there if (folder / name).is_symlink()]
    foreign = sorted({name for name in there if name not in manifest.files} | set(links))
    checked = len(manifest.files) - len(missing)
    return Verification(folder, manifest.state, checked, tuple(missing), tuple(changed), tuple(foreign))
