"""The cache: complete or not there, rebuilt after a kill, clear when it cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.errors import UserError
from workbench.organisms import cache


def write(folder: Path) -> None:
    (folder / "done").write_text("yes")


def test_it_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        write(folder)

    for _ in range(2):
        assert (cache.fetch(tmp_path / "x", make) / "done").read_text() == "yes"
    assert len(made) == 1 and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        write(folder)
        raise UserError("missed its bar")

    with pytest.raises(UserError, match="missed its bar"):
        cache.fetch(tmp_path / "x", make)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_is_made_again(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from workbench.organisms import cache\n"
        "def make(folder):\n"
        "    (folder / 'half').write_text('')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.fetch(Path(sys.argv[1]) / 'x', make)\n"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path.cwd(), check=False)
    assert dead.returncode < 0
    left, _checkpoints = sorted(tmp_path.glob(".part*"))
    assert left.name.startswith(".partial-x-") and (left / "half").exists()
    assert (cache.fetch(tmp_path / "x", write) / "done").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_build_that_runs_now_is_left_alone(tmp_path: Path) -> None:
    running = tmp_path / f".partial-x-{os.getpid()}-abc"
    running.mkdir()
    cache.fetch(tmp_path / "x", write)
    assert running.is_dir()


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="TUNESCOPE_CACHE"):
        cache.fetch(tmp_path / "file" / "x", write)


def test_the_key_follows_recipe_and_seed() -> None:
    keys = {cache.key({"steps": steps}, seed) for steps in (1, 2) for seed in (0, 1)}
    assert len(keys) == 4 and cache.key({"steps": 1}, 0) in keys


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path))
    assert cache.home() == tmp_path and cache.home(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv("TUNESCOPE_CACHE")
    assert cache.home() == Path.home() / ".cache" / "tunescope" / "organisms"
