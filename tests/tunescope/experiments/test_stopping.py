"""A run that is really killed, or really interrupted, goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tunescope.experiments.small import SMALL, tree
from tunescope.experiments import Experiment, run_experiment
from workbench import runs


def tunescope(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[3]
    # A shell's background job ignores Ctrl-C, and so do its children: a person's terminal does not.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from tunescope.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def stopped(file: Path, out: Path, how: signal.Signals, cells: int = 2) -> tuple[int, str]:
    """The experiment, sent ``how`` once it has finished some cells: its exit code and what it said on stderr."""
    process = tunescope("run", str(file), "--out", str(out))
    deadline = time.monotonic() + 240
    while len(list(out.glob("cells/*/cell.json"))) < cells:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(how)
    _, error = process.communicate()
    return process.returncode, error


@pytest.mark.slow
def test_kill_minus_nine_then_resume_to_the_same_bytes(home: Path, tmp_path: Path) -> None:
    file = home / "killed.yaml"
    file.write_text(SMALL)
    code, _ = stopped(file, tmp_path / "killed", signal.SIGKILL)
    assert code == -signal.SIGKILL
    left = tree(tmp_path / "killed")
    assert runs.open(tmp_path / "killed").state == "interrupted" and "tables/metrics.parquet" not in left
    assert 2 <= len([name for name in left if name.endswith("cell.json")]) < 8
    for name in ("killed", "whole"):
        ended = tunescope("run", str(file), "--out", str(tmp_path / name))
        _, error = ended.communicate()
        assert ended.returncode == 0, error
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert runs.verify(tmp_path / "killed").ok


@pytest.mark.slow
def test_control_c_is_130_and_keeps_what_is_done(home: Path, tmp_path: Path) -> None:
    file = home / "interrupted.yaml"
    file.write_text(SMALL)
    code, error = stopped(file, tmp_path / "run", signal.SIGINT)
    kept = f"{tmp_path / 'run'} keeps what is done, and the same command goes on from there."
    assert code == 130 and error == f"Interrupted. {kept}\n"
    assert runs.open(tmp_path / "run").state == "interrupted"
    done = {name: made for name, made in tree(tmp_path / "run").items() if name.startswith("steps/")}
    run_experiment(Experiment.load(file), tmp_path / "run", folder=home)
    now = tree(tmp_path / "run")
    assert done and all(now[name] == made for name, made in done.items() if ".partial-" not in name)
