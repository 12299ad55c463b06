"""A run that is there before its work begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench import runs
from workbench.errors import UserError
from workbench.runs import begun

ROOT = Path(__file__).resolve().parents[3]


def test_a_killed_probe_is_listed_as_interrupted_and_ends_the_same(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom workbench.runs import begun\nwith begun('heads', {'a': 1}, sys.argv[1]): time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "run" / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    assert [run.state for run in runs.list(tmp_path)] == ["running"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [run.state for run in runs.list(tmp_path)] == ["interrupted"]
    with begun("heads", {"a": 1}, tmp_path / "run") as run:
        run.write_json("answer", {"n": 1})
    assert runs.verify(tmp_path / "run").ok


def test_a_refusal_before_any_work_leaves_nothing_and_a_later_one_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no layer"), begun("heads", {}, tmp_path / "none"):
        raise UserError("There is no layer 99.")
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="late"), begun("heads", {}, tmp_path / "some") as run:
        run.write_json("part", {})
        raise UserError("late")
    assert runs.open(tmp_path / "some").state == "failed"
    with pytest.raises(ValueError, match="bug"), begun("heads", {}, tmp_path / "bug"):
        raise ValueError("bug")
    assert runs.open(tmp_path / "bug").state == "failed"


def test_an_earlier_run_is_not_removed_by_a_refusal(tmp_path: Path) -> None:
    with begun("heads", {}, tmp_path / "run"):
        pass
    with pytest.raises(UserError), begun("heads", {}, tmp_path / "run"):
        raise UserError("refused")
    assert (tmp_path / "run" / "run.json").is_file()
