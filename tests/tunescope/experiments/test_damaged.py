"""A damaged experiment is never taken as it lies there: the same command makes again what was damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tunescope.experiments.small import tree
from tests.workbench.recording.test_damage import deleted, emptied, flipped, truncated
from tunescope.experiments import Experiment, run_experiment
from workbench import runs
from workbench.files import DamagedWarning

TEXT = """
name: damaged
pair: {base: llama-base, tuned: llama-tuned, device: cpu}
prompts: {file: p.jsonl}
steps:
  rec: {do: record}
  moved: {do: localize activations, record: rec}
  weights: {do: localize weights}
"""
FILES = (
    "steps/rec-*/activations/shard-00000.safetensors", "steps/rec-*/activations/index.parquet",
    "steps/rec-*/activations/store.json", "steps/moved-*/result.safetensors", "steps/moved-*/table.parquet",
    "steps/moved-*/step.json", "tables/metrics.parquet", "sections.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(Experiment.parse(TEXT), folder, folder=home)
    return folder


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("damage", [flipped, emptied, deleted])
@pytest.mark.filterwarnings("ignore::workbench.files.DamagedWarning")
def test_a_damaged_finished_experiment_is_mended(
    home: Path, whole: Path, tmp_path: Path, pattern: str, damage: Callable[[Path], Path]
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    damage(next(copy.glob(pattern)))
    assert not runs.verify(copy).ok
    run_experiment(Experiment.parse(TEXT), copy, folder=home)
    assert tree(copy) == tree(whole) and runs.verify(copy).ok


@pytest.mark.parametrize("pattern", [file for file in FILES if file.startswith("steps/")])
@pytest.mark.parametrize("damage", [flipped, truncated])
def test_a_damaged_step_of_an_interrupted_experiment_is_done_again(
    home: Path, whole: Path, tmp_path: Path, pattern: str, damage: Callable[[Path], Path]
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    runs.open(copy)._replace(state="interrupted", files={})
    bad = next(copy.glob(pattern))
    weights = next(copy.glob("steps/weights-*/result.safetensors")).stat().st_ino
    damage(bad)
    with pytest.warns(DamagedWarning, match=bad.name):
        run_experiment(Experiment.parse(TEXT), copy, folder=home)
    assert tree(copy) == tree(whole) and runs.verify(copy).ok
    assert next(copy.glob("steps/weights-*/result.safetensors")).stat().st_ino == weights
