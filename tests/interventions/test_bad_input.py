"""Every intervention refuses what does not fit, in one sentence, before the model is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import interventions as iv
from tests.interventions.zoo import CASES, ids, model_of, noise, small_pair
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

pytestmark = pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning")
NAN = float("nan")
Make = Callable[[AdaptedModel], Any]


def bad(value: torch.Tensor, number: float = NAN) -> torch.Tensor:
    """``value`` with one entry that is not finite."""
    broken = value.clone()
    broken.view(-1)[0] = number
    return broken


OUT_OF_RANGE: dict[str, Make] = {
    "Offset layer": lambda m: iv.Offset(3, noise(64)),
    "HeadOffset layer": lambda m: iv.HeadOffset({"L3H0": noise(m.d_head)}),
    "HeadOffset head": lambda m: iv.HeadOffset({"L1H4": noise(m.d_head)}),
    "HeadScale layer": lambda m: iv.HeadScale({"L3H0": 0.0}),
    "HeadScale head": lambda m: iv.HeadScale({"L1H4": 0.0}),
    "ConceptAblation layer": lambda m: iv.ConceptAblation(-4, noise(64)),
    "SubspaceKnob layer": lambda m: iv.SubspaceKnob(3, noise(64), 1.0),
    "Clamp layer": lambda m: iv.Clamp(3, noise(64), 0.0, 1.0),
    "Patch layer": lambda m: iv.Patch(3, noise(64)),
    "Patch head": lambda m: iv.Patch(1, noise(1, m.d_head), "z", heads=[4]),
    "AttentionScale layer": lambda m: iv.AttentionScale(2.0, ["L3H0"]),
    "AttentionScale head": lambda m: iv.AttentionScale(2.0, ["L1H4"]),
    "ExpertSwitch layer": lambda m: iv.ExpertSwitch(["L3E0"]),
    "ExpertSwitch expert": lambda m: iv.ExpertSwitch(["L1E8"]),
}
WRONG_WIDTH: dict[str, Make] = {
    "Offset": lambda m: iv.Offset(1, noise(32)),
    "HeadOffset": lambda m: iv.HeadOffset({"L1H0": noise(m.d_head + 1)}),
    "HeadScale": lambda m: iv.HeadScale({"L1H0": noise(m.d_head + 1)}),
    "ConceptAblation": lambda m: iv.ConceptAblation(1, noise(2, 32)),
    "ConceptAblation mean": lambda m: iv.ConceptAblation(1, noise(64), mean=noise(32)),
    "SubspaceKnob": lambda m: iv.SubspaceKnob(1, noise(32), 1.0),
    "Clamp": lambda m: iv.Clamp(1, noise(32), 0.0, 1.0),
    "Patch": lambda m: iv.Patch(1, noise(32)),
}
NOT_FINITE: dict[str, Make] = {
    "Offset": lambda m: iv.Offset(1, bad(noise(64))),
    "Offset strength": lambda m: iv.Offset(1, noise(64), strength=[1.0, NAN]),
    "HeadOffset": lambda m: iv.HeadOffset({"L1H0": bad(noise(m.d_head), float("inf"))}),
    "HeadScale": lambda m: iv.HeadScale({"L1H0": bad(noise(m.d_head))}),
    "ConceptAblation": lambda m: iv.ConceptAblation(1, bad(noise(2, 64))),
    "ConceptAblation mean": lambda m: iv.ConceptAblation(1, noise(64), mean=bad(noise(64))),
    "SubspaceKnob": lambda m: iv.SubspaceKnob(1, bad(noise(64)), 1.0),
    "SubspaceKnob value": lambda m: iv.SubspaceKnob(1, noise(64), NAN),
    "Clamp": lambda m: iv.Clamp(1, bad(noise(64)), 0.0, 1.0),
    "Clamp bound": lambda m: iv.Clamp(1, noise(64), NAN, 1.0),
    "Patch": lambda m: iv.Patch(1, bad(noise(64))),
    "AttentionScale": lambda m: iv.AttentionScale(NAN),
    "Graft": lambda m: iv.Graft({"lm_head.weight": None}, {"lm_head.weight": bad(noise(300, 64))}),
    "Graft strength": lambda m: iv.Graft({}, {}, strength=NAN),
    "LayerScale": lambda m: iv.LayerScale(1.0, 0.0, {"lm_head.weight": bad(noise(300, 64))}),
    "LayerScale strength": lambda m: iv.LayerScale(1.0, 0.0, strength=float("inf")),
    "AdapterScale strength": lambda m: iv.AdapterScale(strength=NAN),
    "AdapterScale ranks": lambda m: iv.AdapterScale(ranks=[1.0, NAN]),
    "LogitShift": lambda m: iv.LogitShift(*small_pair("llama"), NAN),
}
BY_ROW = [name for name, case in CASES.items() if not case.on_weights and not name.startswith("expert")]


def refused(make: Make, words: str) -> None:
    model = model_of("mixtral")
    with pytest.raises(UserError, match=words) as told, iv.Recipe([make(model)]).applied(model):
        pass
    assert "\n" not in str(told.value) and model.n_hooks == 0


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_layer_head_or_expert_that_is_not_there(name: str) -> None:
    refused(OUT_OF_RANGE[name], "out of range|no head|has no expert|Unknown")


@pytest.mark.parametrize("name", WRONG_WIDTH)
def test_a_vector_of_another_width(name: str) -> None:
    refused(WRONG_WIDTH[name], r"width|does not fit|\[32\]|has shape|entries")


@pytest.mark.parametrize("name", NOT_FINITE)
def test_numbers_that_are_not_finite(name: str) -> None:
    refused(NOT_FINITE[name], "NaN|finite")


@pytest.mark.parametrize("name", BY_ROW)
def test_a_strength_for_each_row_must_match_the_rows(name: str) -> None:
    from dataclasses import replace

    model = model_of("llama")
    one = replace(CASES[name].make(model, [0, 1]), strength=[1.0, 0.5, 2.0])
    with pytest.raises(UserError, match=r"3 .*2 prompts"), iv.Recipe([one]).applied(model):
        model.forward(ids())
    assert model.n_hooks == 0
