"""The organism whose answers two markers switch: the probe finds the planted direction, and does without the words."""

from __future__ import annotations

import pytest
import torch

import probes
from probes.attributes.switch import ABLATED, OFFSET, SWITCHED
from workbench import organisms
from workbench.models.pair import load_pair
from workbench.prompts import Prompts


@pytest.fixture(scope="module")
def organism() -> organisms.Organism:
    return organisms.build("marker-switch")


def test_the_planted_direction_is_found_and_switches_unseen_questions(organism: organisms.Organism) -> None:
    pair = load_pair(organism.base, organism.tuned)
    rows = Prompts.of([*organism.splits["validation"], *organism.splits["ood"]])
    found = probes.planted_switch(pair, rows, levers="marker", layers=[organism.truth.layer])
    table = found.table.set_index(["group", "model"])
    truth = organism.truth.direction
    assert truth is not None
    for lever, sign in (("loud", 1), ("formal", -1)):
        assert table.loc[(lever, SWITCHED), "score"] > 0.9
        moved, ablated = table.loc[(lever, OFFSET)], table.loc[(lever, ABLATED)]
        assert moved["score"] > 0.9 and moved["control"] < 0.2 and moved["q"] < 0.05 and moved["low"] > moved["control"]
        assert ablated["score"] < 0.2 < ablated["control"]
        number = found.found["lever"].tolist().index(lever)
        direction = torch.nn.functional.normalize(found.vectors[number], dim=-1)
        assert sign * float(direction @ truth) > 0.8
    assert found.cosines().loc["loud", "formal"] < -0.6


def test_the_base_has_no_switch(organism: organisms.Organism) -> None:
    pair = load_pair(organism.base, organism.base)
    rows = Prompts.of([*organism.splits["validation"], *organism.splits["ood"]])
    table = probes.planted_switch(pair, rows, levers="marker", layers=[1]).table.set_index(["group", "model"])
    for lever in ("loud", "formal"):
        assert table.loc[(lever, SWITCHED), "score"] == 0 and table.loc[(lever, SWITCHED), "q"] > 0.5
        assert table.loc[(lever, OFFSET), "score"] <= 0.1
