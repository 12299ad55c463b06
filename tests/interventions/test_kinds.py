"""Kinds of interventions in recipe files: ours are ours, whatever others define under the same name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import interventions as iv
from interventions.base import kind_named
from workbench.errors import UserError

VECTOR = torch.ones(4)


def test_a_class_of_the_same_name_does_not_take_ours_over(tmp_path: Path) -> None:
    ours = iv.Recipe([iv.Offset(layer=1, vector=VECTOR)])
    path = ours.save(tmp_path / "ours.safetensors")

    @dataclass(frozen=True, eq=False, repr=False)
    class Offset(iv.Offset):
        """Somebody's own."""

    loaded = iv.Recipe.load(path)
    assert type(loaded.interventions[0]) is iv.Offset and loaded == ours
    own = Offset(layer=1, vector=VECTOR)
    assert own.kind == f"{__name__}:{Offset.__qualname__}" and own != ours.interventions[0]
    again = iv.Recipe.load(iv.Recipe([own]).save(tmp_path / "own.safetensors"))
    assert type(again.interventions[0]) is Offset and again == iv.Recipe([own])


def test_a_class_that_says_it_is_ours_is_not(tmp_path: Path) -> None:
    path = iv.Recipe([iv.HeadScale({"L0H0": 0.5})]).save(tmp_path / "ours.safetensors")
    type("HeadScale", (iv.HeadScale,), {"__module__": "interventions.heads"})
    assert type(iv.Recipe.load(path).interventions[0]) is iv.HeadScale


def test_a_foreign_kind_loads_only_where_its_class_is_known(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport torch\nimport interventions as iv\n"
        "@dataclass(frozen=True, eq=False, repr=False)\nclass Push(iv.Offset):\n    pass\n"
        "if __name__ == 'mine':\n    open('imported', 'w').close()\n"
    )
    save = "import mine, torch, interventions as iv; iv.Recipe([mine.Push(1, torch.ones(4))]).save('r.safetensors')"
    load = "import interventions as iv; print(iv.Recipe.load('r.safetensors'))"
    place = {"cwd": tmp_path, "capture_output": True, "text": True}
    root = str(Path(iv.__file__).parents[1])
    run = [sys.executable, "-c"]
    begin = f"import sys; sys.path[:0] = [{root!r}, '.']; "
    assert subprocess.run([*run, begin + save], check=True, **place).returncode == 0
    (tmp_path / "imported").unlink()
    refused = subprocess.run([*run, begin + load], check=False, **place)
    assert "UserError" in refused.stderr and "Push of mine: import that module" in refused.stderr
    assert not (tmp_path / "imported").exists(), "loading imports nothing by itself"
    assert "mine:Push" in subprocess.run([*run, begin + "import mine; " + load], check=True, **place).stdout


@pytest.mark.parametrize("name", ["Ofset", "Recipe", "Intervention", "SiteIntervention", "bake", "os:system", ":", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        kind_named(name)
