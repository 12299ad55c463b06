"""Behaviour, dose and scope on the device: the tables of the CPU, and texts with draws of their own seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interventions as iv
from probes.random_recipes import stand_ins
from tests.cuda.place import DEVICE, pair_on, same_frames
from tests.workbench.behaviour.pushed import ROWS, token
from workbench.behaviour import METRICS, BehaviourDiff, behaviour_diff, dose_response, known_unknown, scope_panel
from workbench.errors import UserError

NEUTRAL = ["the quick brown fox jumps", "over the lazy dog"]
STRENGTHS = [-1.0, 0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return pair_on(DEVICE), pair_on("cpu")


@pytest.fixture(scope="module")
def recipe(both: tuple[Any, Any]) -> iv.Recipe:
    row = both[1].tuned.unembedding()[token("fox")].detach()
    return iv.Recipe([iv.Offset(2, 40 * row / row.norm(), positions="last+generated")])


def test_every_metric(both: tuple[Any, Any], recipe: iv.Recipe, tmp_path: Path) -> None:
    options: dict[str, Any] = {"metrics": list(METRICS), "neutral": NEUTRAL, "samples": 2, "max_new_tokens": 4}
    found, wanted = (behaviour_diff(pair, ROWS, {"fox": recipe}, texts=True, **options) for pair in both)
    same_frames(found.table, wanted.table)
    same_frames(found.rows, wanted.rows)
    assert found.provenance.device.split(":")[0] == DEVICE.type
    same_frames(BehaviourDiff.load(found.save(tmp_path / "diff.safetensors")).table, found.table, rtol=1e-12)


def test_dose_and_response(both: tuple[Any, Any], recipe: iv.Recipe) -> None:
    controls = [iv.dose(stand_in) for stand_in in stand_ins(recipe, both[1].tuned, ROWS, 10, 0)]
    found, wanted = (
        dose_response(pair, ROWS, iv.dose(recipe), STRENGTHS, metric="prob", controls=controls, neutral=NEUTRAL)
        for pair in both
    )
    same_frames(found.table, wanted.table)


def test_base_and_tuned_on_different_devices(recipe: iv.Recipe) -> None:
    own = pair_on("cpu")
    options: dict[str, Any] = {"metrics": list(METRICS), "neutral": NEUTRAL, "samples": 2, "max_new_tokens": 4}
    wanted = behaviour_diff(own, ROWS, {"fox": recipe}, **options)
    own.tuned.hf.to(DEVICE)
    same_frames(behaviour_diff(own, ROWS, {"fox": recipe}, **options).table, wanted.table)


def test_scope(both: tuple[Any, Any], recipe: iv.Recipe) -> None:
    controls = {"fox": stand_ins(recipe, both[1].tuned, ROWS, 10, 0)}
    found, wanted = (scope_panel(pair, {"fox": recipe}, ROWS, NEUTRAL, NEUTRAL, controls=controls) for pair in both)
    same_frames(found.table, wanted.table)


def test_parts_of_the_prompts(both: tuple[Any, Any]) -> None:
    made: list[Any] = []
    for pair in both:
        try:
            made.append(known_unknown(pair, ROWS, metrics=["prob"]).table)
        except UserError as error:  # too few rows of one part: the CPU must say the same
            made.append(pd.DataFrame({"said": [str(error)]}))
    same_frames(*made)


def test_sampled_texts_come_from_the_seed(both: tuple[Any, Any]) -> None:
    prompts = ["the quick brown", "a lazy"]
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(both[0].tuned.generate(prompts, do_sample=True, max_new_tokens=5, num_return_sequences=2))
    assert draws[0] == draws[1] and len(draws[0]) == 4
