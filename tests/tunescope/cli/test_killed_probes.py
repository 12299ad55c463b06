"""A killed probe is listed as interrupted, and goes on behind its last finished batch to the same bytes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from typer.testing import CliRunner

from tests.tiny import tiny_model, tokenizer
from tests.tunescope.cli.example_folders import of_refusals
from tests.tunescope.experiments.small import tree
from tunescope.cli.app import app
from workbench import finished_batches, runs

ROOT = Path(__file__).resolve().parents[3]
CLI = CliRunner()
KILLED = """
import os, signal, sys
from workbench import finished_batches

count, written = int(sys.argv.pop(1)), finished_batches._Store.write

def write(store):
    written(store)
    if len(list(store.folder.glob("*.safetensors"))) == count:
        os.kill(os.getpid(), signal.SIGKILL)

finished_batches.SECONDS, finished_batches._Store.write = 0.0, write
from tunescope.cli import main

main()
"""
"""The command line, killed as soon as so many batches are on the disk."""


def lora(home: Path) -> Path:
    """An adapter of the base in ``home``."""
    folder = home / "lora"
    if not folder.exists():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["down_proj", "o_proj"], init_lora_weights=False)
        peft.get_peft_model(tiny_model("llama"), config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def killed(arguments: list[str], batches: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(batches), *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr


def computed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run to the end; how many batches were computed."""
    count = 0
    plain = finished_batches._Store._computed

    def counted(store: Any, *given: Any) -> Any:
        nonlocal count
        count += 1
        return plain(store, *given)

    with monkeypatch.context() as patched:
        patched.setattr(finished_batches._Store, "_computed", counted)
        done = CLI.invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    return count


def stopped_and_resumed(line: str, batches: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folders of a run that was killed and resumed, and of one that was not."""
    begun, whole = [[*shlex.split(line), "--out", str(folder / name)] for name in ("begun", "whole")]
    killed(begun, batches)
    assert runs.open(folder / "begun").state == "interrupted"
    listed = CLI.invoke(app, ["runs", "list", "--home", str(folder), "--json"])
    assert '"interrupted"' in listed.stdout, listed.stdout
    first, rest = computed(whole, monkeypatch), computed(begun, monkeypatch)
    assert 0 < rest <= first - batches
    assert runs.verify(folder / "begun").ok and runs.verify(folder / "whole").ok
    return folder / "begun", folder / "whole"


PROBES = {
    "heads": ("localize heads llama-base llama-tuned --prompts p.jsonl", 2),
    "positions": ("localize layers llama-base llama-tuned --prompts p.jsonl --positions each", 2),
    "nulls": ("localize heads llama-base {lora} --prompts p.jsonl --metric kl --no-normalise --null 19", 24),
    "behaviour": ("diff llama-base llama-tuned --prompts p.jsonl --max-new-tokens 4", 3),
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one == "heads" else pytest.mark.slow) for one in PROBES]
)
def test_killed_and_resumed_it_ends_in_the_same_bytes(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    line, batches = PROBES[name]
    begun, whole = stopped_and_resumed(line.format(lora=lora(home)), batches, tmp_path, monkeypatch)
    assert tree(begun) == tree(whole)


@pytest.mark.slow
def test_a_search_for_a_direction_goes_on_within_its_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_refusals(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = "localize direction base tuned --prompts p.jsonl --behaviour begins:sorry --limit 8 --max-new-tokens 3"
    begun, whole = stopped_and_resumed(line, 12, tmp_path / "out", monkeypatch)
    assert tree(begun) == tree(whole)


@pytest.mark.slow
def test_ways_to_turn_go_on_and_only_seconds_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_refusals(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = "localize ways-to-turn base tuned --prompts p.jsonl --behaviour begins:sorry --limit 8 --max-new-tokens 3"
    begun, whole = stopped_and_resumed(f"{line} --controls 10 --candidates 2", 40, tmp_path / "out", monkeypatch)
    tables = [pd.read_parquet(folder / "table.parquet").drop(columns="slowdown") for folder in (begun, whole)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
