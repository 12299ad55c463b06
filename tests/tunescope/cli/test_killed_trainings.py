"""A killed training is listed as interrupted, and goes on behind its last checkpoint to the same bytes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.tunescope.cli.example_folders import ROOT, of_lessons
from tests.tunescope.experiments.small import tree
from tunescope.cli.app import app
from workbench import organisms, runs
from workbench.resumable_trainer import ResumableTrainer

CLI = CliRunner()
KILLED = """
import os, signal, sys
from workbench import finished_batches, resumable_trainer

count, written = int(sys.argv.pop(1)), resumable_trainer.ResumableTrainer._save_checkpoint

def save(trainer, *given, **more):
    global count
    written(trainer, *given, **more)
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)

finished_batches.SECONDS, resumable_trainer._SHARE = 0.0, 1e9
resumable_trainer.ResumableTrainer._save_checkpoint = save
from tunescope.cli import main

main()
"""
"""The command line, killed as soon as so many checkpoints are on the disk; one is written after every step."""


def killed(line: str, checkpoints: int, **variables: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(checkpoints), *shlex.split(line)], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads()),
                          **variables},
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every batch that is trained on."""
    seen: list[int] = []
    plain = ResumableTrainer.training_step

    def step(trainer: ResumableTrainer, *given: object, **more: object) -> object:
        seen.append(1)
        return plain(trainer, *given, **more)

    monkeypatch.setattr(ResumableTrainer, "training_step", step)
    return seen


TRAININGS = {
    "tune-in-stages": ("--stages text=long.jsonl --stages answer=p.jsonl --learning-rate 0.01", 3),
    "masked-tuning": ("--prompts p.jsonl --share 0.1 --epochs 2 --refresh 1 --batch-size 4", 3),
    "train-head-scales": ("--prompts p.jsonl --epochs 2 --batch-size 4", 2),
    "tune-series": ("--members near=p.jsonl --members far=long.jsonl", 3),
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one == "tune-in-stages" else pytest.mark.slow) for one in TRAININGS]
)
def test_killed_and_resumed_it_ends_in_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_lessons(tmp_path)
    monkeypatch.chdir(tmp_path)
    options, checkpoints = TRAININGS[name]
    line = f"train {name} base {options} --out"
    killed(f"{line} begun", checkpoints)
    assert runs.open("begun").state == "interrupted"
    assert '"interrupted"' in CLI.invoke(app, ["runs", "list", "--home", ".", "--json"]).stdout
    seen = counted(monkeypatch)
    counts = []
    for folder in ("whole", "begun"):
        seen.clear()
        done = CLI.invoke(app, shlex.split(f"{line} {folder}"))
        assert done.exit_code == 0, done.exception
        counts.append(len(seen))
    assert counts[1] < counts[0]
    assert tree(Path("begun")) == tree(Path("whole"))
    assert runs.verify("begun").ok


@pytest.mark.slow
def test_a_killed_organism_is_listed_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESCOPE_RUNS", "runs")
    whole = organisms.build("marker-switch", 3, tmp_path / "whole")
    killed("organism build marker-switch --seed 3 --cache cache", 30)
    (listed,) = runs.list()
    assert (listed.kind, listed.state) == ("organism", "interrupted")
    seen = counted(monkeypatch)
    done = CLI.invoke(app, shlex.split("organism build marker-switch --seed 3 --cache cache"))
    assert done.exit_code == 0, done.exception
    assert [run.state for run in runs.list()] == ["complete"] and seen
    built = organisms.build("marker-switch", 3, "cache")
    for folder in ("base", "tuned"):
        here, there = (tree(getattr(organism, folder)) for organism in (built, whole))
        apart = {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}
        assert apart <= {"adapter_config.json"}  # which names the folder of its base
    assert not [path for path in Path("cache").iterdir() if path.name.startswith(".")]
