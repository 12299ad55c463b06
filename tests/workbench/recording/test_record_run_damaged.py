"""The command ``record`` given again on a damaged run makes it what it was, and names what was damaged."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.workbench.recording.test_damage import deleted, emptied, flipped
from workbench import runs
from workbench.errors import UserError
from workbench.files import DamagedWarning
from workbench.recording.job import record_run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    return home


def recorded(models: Path, out: Path) -> Path:
    prompts = ["the quick fox", "a lazy dog jumps", "brown fox over"]
    record_run(models / "base", models / "tuned", prompts, sites=["z", "resid_post"], out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(models, tmp_path_factory.mktemp("runs") / "whole")


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "name",
    ["activations/shard-00000.safetensors", "activations/index.parquet", "activations/store.json",
     "difference.parquet", "pair.json", "prompts/prompts.jsonl"],
)  # fmt: skip
@pytest.mark.parametrize("damage", [flipped, emptied, deleted])
def test_the_same_command_mends_a_damaged_run(
    models: Path, whole: Path, tmp_path: Path, name: str, damage: Any
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    damage(copy / name)
    assert not runs.verify(copy).ok
    with pytest.warns(DamagedWarning, match=Path(name).name):
        recorded(models, copy)
    assert tree(copy) == tree(whole) and runs.verify(copy).ok


def test_a_run_with_files_that_no_run_wrote_is_not_sealed(models: Path, whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "result.safetensors").write_bytes(b"foreign")
    before = tree(copy)
    with pytest.raises(UserError, match=r"no run wrote \(result\.safetensors\): move them away"):
        recorded(models, copy)
    assert tree(copy) == before


def test_tables_of_a_damaged_run_are_not_read(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    flipped(copy / "difference.parquet")
    with pytest.raises(UserError, match=r"difference\.parquet is not the file that the run ended with"):
        runs.open(copy).read_table("difference")


def test_the_summary_is_streamed_and_equals_that_of_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.recording import job

    generator = torch.Generator().manual_seed(0)
    base = torch.randn((50, 3, 4), generator=generator)
    tuned = base + 0.1 * torch.randn((50, 3, 4), generator=generator)
    base[7, 0, 0] = torch.nan
    kept = [row for row in range(50) if row != 7]
    wide, change = base[kept].flatten(1).double(), (tuned[kept].double() - base[kept].double()).flatten(1)
    wanted = (change.mean(0).norm(), change.square().sum(1).mean().sqrt(), wide.square().sum(1).mean().sqrt())
    monkeypatch.setattr(job, "_CHUNK", 40)
    assert torch.allclose(torch.tensor(job._streamed(base, tuned)), torch.stack(wanted).float(), rtol=1e-6)
