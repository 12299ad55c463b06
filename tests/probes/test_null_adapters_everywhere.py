"""Both kinds of null adapters come out null in the registered probes that score a pair on prompts without training.

A null adapter moves the model like any adapter of its size, so a probe's own q, which asks whether an effect is 0, is
no verdict on it. The verdict is its largest score among those of other nulls (:func:`probes.against_nulls`): a null may
be the first among twenty in one of twenty draws. The rate over all probes is counted here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.probes.test_against_null_adapters import lora_pair
from workbench.errors import UserError
from workbench.method_index import all_methods
from workbench.methods import Method
from workbench.models.null_adapters import KINDS, null_adapter
from workbench.prompts import Prompts

DRAWS, NULLS = 20, 19
OPTIONS: dict[str, dict[str, Any]] = {
    "answers": {"max_new_tokens": 3},
    "head-words": {"layer": 1, "head": 2},
    "heads": {"normalise": False, "together": 0, "draws": 20},
    "layers": {"normalise": False, "positions": "last", "draws": 20},
    "lens": {},
    "mlps": {"normalise": False, "positions": "last", "draws": 20},
    "paths": {"only_correct": False, "draws": 20, "metric": "logit_diff", "source": "tuned", "target": "base"},
    "probability-movement": {},
    "token-shift": {"max_new_tokens": 3},
}
"""Probe -> options that keep it short; a new probe of this kind belongs here."""
ELSEWHERE = {
    "adapter-panel": "compares an adapter's own ranks",
    **dict.fromkeys(
        (
            "calibration-counter-test",
            "certainty",
            "deployment-gap",
            "erased-or-displaced",
            "format-spread",
            "in-context-activations",
            "many-shot",
            "preference-movement",
            "representation-gap",
            "self-correction",
            "soft-prompt-split",
        ),
        "holds scores of each model, so that its largest is no effect of tuning",
    ),
    "circuit": "judges a circuit that is handed to it",
    "cmap": "judges a circuit that is handed to it",
    "composition": "trains masks; its control is random masks",
    "contrastive-generations": "its cells are the phrases that a model wrote, which differ from model to model",
    "direction": "refuses where the tuned model shows no behaviour",
    "experts": "needs a mixture of experts",
    "head-selection": "trains scalings; its control is shuffled answers",
    "knob": "refuses where the tuned model is no better",
    "learned-scaling": "trains scalings; its control is random heads",
    "merges": "refuses where the tuned model is no better",
    "selections": "compares selections that it trains",
    "series-curve": "refuses where the tuned model is no better",
    "skills": "refuses where the tuned model is no better",
    "switching": "needs a mixture of experts",
}
"""Probe -> why a null adapter is no question to it."""


def reading_a_pair() -> dict[str, Method]:
    """Registered probes that read a pair and prompts."""
    return {
        method.name: method
        for method in all_methods("probe")
        if {"pair", "subject"} & set(method.arguments)
        and "prompts" in method.arguments
        and method.module.startswith("probes.")
    }


def rows() -> Prompts:
    words = ["quick", "brown", "fox", "lazy", "dog", "over"]
    return Prompts.of([
        {"prompt": f"the {words[i % 6]} {words[(i + 2) % 6]}", "answer": " fox", "distractor": " dog", "group": f"g{i}"}
        for i in range(8)
    ])  # fmt: skip


def largest(method: Method, pair: Any) -> float:
    options = {**method.fixed, **OPTIONS.get(method.name, {})}
    return float(np.nanmax(method.call(pair, rows(), **options).frame()["score"].to_numpy(dtype=float)))


def false_alarms(method: Method, kind: Any) -> float:
    """The share of null adapters that stand before all of the 19 others which they are compared with."""
    pair, best = lora_pair(seed=3), []
    for number in range(NULLS + DRAWS):
        with null_adapter(pair, number, kind) as stand_in:
            best.append(largest(method, stand_in))
    pool = np.array(best[:NULLS])
    p = [(1 + (pool >= one).sum()) / (1 + NULLS) for one in best[NULLS:]]
    return float(np.mean(np.array(p) <= 0.05))


def test_what_is_named_here_is_registered() -> None:
    assert set(reading_a_pair()) >= set(OPTIONS) | set(ELSEWHERE)


@pytest.mark.slow
def test_false_alarms_of_null_adapters_over_all_probes() -> None:
    methods = reading_a_pair()
    rates = {f"{name}, {kind}": false_alarms(methods[name], kind) for name in OPTIONS for kind in KINDS}
    rate = float(np.mean(list(rates.values())))
    assert rate <= 0.08, f"5 % are expected, the standard error is 1.5 % (a probe's draws share their nulls): {rates}"


@pytest.mark.slow
def test_a_planted_adapter_is_no_null() -> None:
    """What would make the rate above worthless: a score that no adapter raises."""
    method, pair = reading_a_pair()["lens"], lora_pair(planted=True)
    pool = []
    for number in range(NULLS):
        with null_adapter(pair, number, "random") as stand_in:
            pool.append(largest(method, stand_in))
    assert largest(method, pair) > max(pool)


def test_probes_that_need_a_behaviour_refuse_a_null_adapter() -> None:
    pair = lora_pair()
    with null_adapter(pair, 0, "random") as stand_in, pytest.raises(UserError):
        reading_a_pair()["direction"].call(stand_in, rows(), "refusal", max_new_tokens=3)
