"""What of a store can be gone on from: the shards that are whole, and the steps that are missing between them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.files import DamagedWarning, remove_partials
from workbench.recording import layout
from workbench.recording.layout import Shard


@dataclass
class Gap:
    """Shards to be recorded again, behind each other, and the steps that they held."""

    numbers: list[int]
    start: int
    stop: int | None
    """None: up to the end of the recording."""


@dataclass(frozen=True)
class Rest:
    """What a store holds, and what is to be done."""

    shards: dict[int, Shard]
    """The whole ones, by number."""
    gaps: tuple[Gap, ...]
    """The last one is open for a store that is not finished."""
    finished: dict[str, Any] | None = None
    """``files`` of ``store.json``, where its index stands."""

    @property
    def prefix(self) -> list[Shard]:
        """The whole shards from the first one on, up to the first that is missing."""
        shards: list[Shard] = []
        while len(shards) in self.shards:
            shards.append(self.shards[len(shards)])
        return shards


def look_over(folder: Path, store: dict[str, Any], config: str, *, mend: bool) -> Rest:
    """Hash what is in the folder and delete what cannot be gone on from, each damaged file with a warning.

    ``config`` is the hash of the configuration that a shard must be of. Without ``mend`` there is one gap, at the
    end, and a finished store that is damaged is a :class:`UserError`.
    """
    remove_partials(folder)
    files = store.get("files")
    if files is None and (folder / layout.INDEX).exists() and not any(folder.glob(f"shard-*.{layout.INDEX}")):
        # of an older version, which kept no hashes
        return Rest(dict(enumerate(layout.finished_shards(folder, store))), (), {})
    if files is None:
        (folder / layout.INDEX).unlink(missing_ok=True)
        return _unfinished(folder, config, mend=mend)
    for number in range(len(files["shards"])):  # left by a process that was killed while finishing
        layout.part_path(folder, number).unlink(missing_ok=True)
    if not mend:
        layout.finished_shards(folder, store)
    return _finished(folder, files)


def _finished(folder: Path, files: dict[str, Any]) -> Rest:
    problem = layout.index_problem(folder, files["index"])
    if problem is not None:
        _warn(problem)
        layout.remove_shards(folder, range(len(files["shards"])))
        (folder / layout.INDEX).unlink(missing_ok=True)
        return Rest({}, (Gap([0], 0, None),))
    shards, gaps = {}, []
    for number, (name, entry) in enumerate(sorted(files["shards"].items())):
        problem = layout.shard_problem(folder, name, entry)
        if problem is None:
            shards[number] = Shard(folder / name, entry["rows"], entry["steps"], entry["start"], entry["index"])
        else:
            _warn(problem)
            (folder / name).unlink(missing_ok=True)
            gaps.append(Gap([number], entry["start"], entry["start"] + entry["steps"]))
    return Rest(shards, tuple(gaps), files)


def _unfinished(folder: Path, config: str, *, mend: bool) -> Rest:
    there = layout.numbers(folder)
    shards = {number: shard for number in there if (shard := _whole(folder, number, config)) is not None}
    shards = _in_step(shards)
    if not mend:
        shards = {number: shard for number, shard in shards.items() if set(range(number)) <= set(shards)}
    layout.remove_shards(folder, [number for number in there if number not in shards])
    return Rest(shards, tuple(_gaps(shards)))


def _whole(folder: Path, number: int, config: str) -> Shard | None:
    path, part = layout.shard_path(folder, number), layout.part_path(folder, number)
    if not path.exists() or not part.exists():
        return None  # never whole, or deleted
    try:
        shard = layout.whole_shard(path)
    except UserError as error:
        _warn(str(error))
        return None
    if shard.part is None:
        return None  # of an older version: nothing says that it is whole
    if shard.config != config:
        _warn(f"{path} is a shard of another recording; ")
        return None
    return shard


def _in_step(shards: dict[int, Shard]) -> dict[int, Shard]:
    """Those whose steps come behind those of the shards before them; a shard in another's place is not one."""
    of_step: dict[int, Shard] = {}
    number, step = 0, 0
    for place, shard in sorted(shards.items()):
        follows = shard.start == step if place == number else shard.start >= step + (place - number)
        if not follows:
            _warn(f"{shard.path} is not the shard that was written here; its steps are recorded again.")
            continue
        of_step[place] = shard
        number, step = place + 1, shard.start + shard.steps
    return of_step


def _gaps(shards: dict[int, Shard]) -> list[Gap]:
    gaps: list[Gap] = []
    number, step = 0, 0
    for place, shard in sorted(shards.items()):
        if place > number:
            gaps.append(Gap(list(range(number, place)), step, shard.start))
        number, step = place + 1, shard.start + shard.steps
    return [*gaps, Gap([number], step, None)]


def missing_steps(gaps: Sequence[Gap], total: int) -> list[int]:
    """The numbers of the steps to append, in order, of a recording of ``total`` steps."""
    return [step for gap in gaps for step in range(gap.start, total if gap.stop is None else gap.stop)]


def _warn(problem: str) -> None:
    warnings.warn(problem.partition(";")[0] + "; what it held is recorded again.", DamagedWarning, stacklevel=2)
