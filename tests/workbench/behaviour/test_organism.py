"""The planted truth of an organism, read from behaviour: its experts carry the refusal and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import interventions as iv
from workbench import organisms
from workbench.behaviour import Dose, behaviour_diff, dose_response, known_unknown, scope_panel
from workbench.models.pair import load_pair
from workbench.stats.controls import random_units

pytestmark = pytest.mark.slow
SHORT: dict[str, Any] = {"max_new_tokens": 3}


def switched(off: list[str], strength: float = 1.0) -> iv.Recipe:
    return iv.Recipe([iv.ExpertSwitch(off=off, strength=strength)])


def test_the_planted_experts_carry_the_refusal() -> None:
    toy = organisms.build("refusal-moe")
    pair = load_pair(toy.base, toy.tuned)
    rows = {topic: [row for row in toy.splits["validation"] if row["topic"] == topic] for topic in ("topic", "other")}
    chosen = list(toy.truth.experts)
    places = [(int(name[1 : name.index("E")]), int(name[name.index("E") + 1 :])) for name in chosen]
    drawn = random_units(places, [pair.tuned.n_experts] * pair.tuned.n_layers)
    random = [[f"L{layer}E{expert}" for layer, expert in draw] for draw in drawn]
    controls = [switched(one) for one in random]
    diff = behaviour_diff(
        pair, rows["topic"], {"off": switched(chosen)}, metrics=["refusal", "accuracy", "kl_base_model", "exact_match"],
        controls={"random": controls}, **SHORT,
    )  # fmt: skip
    assert diff.value("tuned", "refusal") > 0.95 > 0.05 > diff.value("off", "refusal")
    assert diff.value("base", "refusal") == 0.0 and diff.value("random", "refusal") > 0.8
    assert diff.value("off", "kl_base_model") < 0.1 < diff.value("tuned", "kl_base_model")
    panel = scope_panel(pair, switched(chosen), rows["topic"], None, rows["other"], controls=controls)
    inside, outside = panel.table["estimate"]
    assert inside > 0.95 and outside < 0.05 and panel.table["control_high"][0] < 0.5
    assert panel.selective["estimate"][0] > 0.9 and panel.selective["low"][0] > 0.2  # all agree, of few groups
    dose = dose_response(
        pair, rows["topic"], Dose(partial(switched, chosen)), [0, 1], metric="refusal",
        controls=[Dose(partial(switched, one)) for one in random], out_of_scope=rows["other"], **SHORT,
    )  # fmt: skip
    assert dose.table["estimate"].tolist() == [diff.value("tuned", "refusal"), diff.value("off", "refusal")]
    assert dose.table["control_low"][1] > 0.3 and dose.table["side"][1] < 0.1
    facts = [{**row, "answer": row["fact"]} for row in rows["topic"] + rows["other"]]
    parts = known_unknown(pair, facts, {"off": switched(chosen)}, metrics=["refusal", "exact_match"], **SHORT)
    assert parts.value("known", "base", "exact_match") > 0.95 and parts.value("known", "base", "refusal") == 0.0
    assert parts.value("known", "off", "refusal") == 0.0 < parts.value("known", "tuned", "refusal")
