"""Names, bars and truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workbench import organisms
from workbench.errors import UserError
from workbench.organisms.organism import Bar, Truth, check_bars, read, unit

FIVE = ("context-knob", "refusal-moe", "planted-heads", "two-skills", "confounded")


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
