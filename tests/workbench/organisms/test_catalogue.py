"""Names, bars, determinism and seeds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from workbench import organisms
from workbench.errors import UserError
from workbench.organisms.organism import Bar, Truth, check_bars, read, unit

FIVE = ("context-knob", "refusal-moe", "planted-heads", "two-skills", "confounded")


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.suffix in (".safetensors", ".jsonl")
    }


def test_the_organisms_are_listed() -> None:
    assert organisms.names() == (*FIVE, "reachable-heads", "marker-switch")
    assert all(organisms.summary(name) for name in organisms.names())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"context-nob.*context-knob.*two-skills"):
        organisms.build("context-nob")


def test_a_missed_bar_says_which_and_by_how_much() -> None:
    bars = [
        Bar("reached", 0.96, at_least=0.95),
        Bar("tuned accuracy", 0.9, at_least=0.95),
        Bar("others", 0.1, at_most=0.02),
    ]
    with pytest.raises(
        UserError, match=r"seed 3 .*tuned accuracy 0.900 .*missed by 0.050.*others .*missed by 0.080"
    ) as raised:
        check_bars("two-skills", 3, bars)
    assert "reached" not in str(raised.value)
    check_bars("two-skills", 3, bars[:1])


def test_truth_survives_its_file(tmp_path: Path) -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1] = True
    truth = Truth("planted", heads=("L1H2",), direction=unit(torch.ones(4)), entries={"a/b": {"x.weight": mask}})
    with pytest.raises(KeyError):
        _ = truth.entries["missing"]
    plain = Truth("planted", heads=("L1H2",), direction=unit(torch.ones(4)), entries={"skill": {"x.weight": mask}})
    plain.save(tmp_path)
    back = Truth.load(tmp_path)
    assert back.heads == ("L1H2",) and torch.equal(back.direction, plain.direction)
    assert torch.equal(back.entries["skill"]["x.weight"], mask)


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a complete organism"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIVE)
def test_two_builds_with_one_seed_have_the_same_weights_and_rows(name: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first = organisms.build(name, cache=tmp_path / "a")
    # not Python's own generator: beartype draws from it when it checks lists (see test_training.py for that one)
    assert torch.equal(torch.get_rng_state(), before), "a build leaves the caller's generators alone"
    torch.manual_seed(99)
    torch.set_num_threads(2)
    second = organisms.build(name, cache=tmp_path / "b")
    assert hashes(first.folder) == hashes(second.folder)
    assert first.made_with["cpu_seconds"] <= 90
