"""Enforced routing is found, as it was enforced; labels that mean nothing find nothing."""

from __future__ import annotations

import numpy as np
import pytest

import interventions as iv
import probes
from probes.experts.domains import _bits
from tests.probes.provenance import Calls, pair
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

WORDS = {"foxes": "fox fox fox", "dogs": "dog dog dog"}
ROWS = [
    {"prompt": f"{words} {letter}", "label": name, "group": f"{name} {letter}"}
    for letter in "abcdefgh" for name, words in WORDS.items()
]  # fmt: skip


def calls_of_domain_experts() -> Calls:
    return Calls(
        [{"subject": pair("qwen3moe"), "prompts": Prompts.of(ROWS), "exclude": "none", "batch_size": 3, "seed": 3}]
    )


def test_enforced_routing_is_found() -> None:
    model = AdaptedModel(tiny_model("mixtral"), tokenizer(), name="moe")
    fox = tuple(tokenizer()(" fox", add_special_tokens=False)["input_ids"])
    assert len(fox) == 1
    enforced = iv.Recipe([iv.ExpertSwitch(on=["L1E5"], positions=iv.Where("all", tokens=fox))])
    with enforced.applied(model):
        found = probes.domain_experts(model, ROWS)
    lines = found.table.set_index(["layer", "expert", "domain"])
    forced = lines.loc[(1, 5, "foxes")]
    assert forced["score"] >= 0.3 and forced["q"] < 0.05 and forced["score"] > forced["control"]
    assert "L1E5" in found.experts_of("foxes") and found.figure().data and "beyond chance" in found.summary()
    with pytest.raises(UserError, match="labelled 'cats'"):
        found.experts_of("cats")


def test_labels_that_mean_nothing_find_nothing() -> None:
    rows = [{"prompt": f"the fox {n}", "label": "ab"[n % 2]} for n in range(16)]
    found = probes.domain_experts(AdaptedModel(tiny_model("mixtral"), tokenizer(), name="moe"), rows)
    assert not (found.table["q"] < 0.05).any()
    with pytest.raises(UserError, match="two domains or more"):
        probes.domain_experts(AdaptedModel(tiny_model("mixtral"), tokenizer(), name="moe"), rows[::2])


def test_bits_by_hand() -> None:
    assert _bits(np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1])) == pytest.approx(1.0)
    assert _bits(np.eye(2)[[0, 1, 0, 1]], np.array([0, 0, 1, 1])) == pytest.approx(0.0)
