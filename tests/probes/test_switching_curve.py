"""Switching curve: switching the planted expert changes behaviour, random experts of the same layer do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probes.experts.mapping import expert_map
from probes.experts.switching import SwitchingCurve, switching_curve
from probes.matching import matched_cells
from tests.probes.test_expert_map import EXPERT, LAYER, planted, prompts
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompt, Prompts

WORD = " fox"


def refusing() -> AdaptedModel:
    """The planted model, made to answer " fox" wherever the planted expert has written."""
    model = planted()
    with torch.no_grad():  # the last layer adds nothing, so that the rest of the residual is the token alone
        model.hf.model.layers[2].self_attn.o_proj.weight.zero_()
        model.hf.model.layers[2].mlp.experts.down_proj.zero_()
    seen: list[torch.Tensor] = []
    sites = (Site("expert", LAYER, EXPERT), Site("resid_post", model.n_layers - 1))
    with model.hooked([SiteHook(site, lambda value, ctx: seen.append(value[0, -1].clone())) for site in sites]):
        model.forward(model.encode(["qqa"]))
    written, rest = seen[0], seen[1] - seen[0]
    direction = written - (written @ rest) / (rest @ rest) * rest
    word = model.tokenizer(WORD, add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.hf.lm_head.weight[word] = direction / direction.norm() / model.hf.model.norm.weight * 100
    return model


def ending_in_a() -> Prompts:
    return Prompts.of(["q" * (2 + n % 3) + "xyz"[: n % 4] + "a" for n in range(10)])


def refuses(response: str, row: Prompt) -> bool:
    return response.startswith(WORD.strip()) or response.startswith(WORD)


def test_the_planted_expert_turns_the_behaviour_and_random_ones_do_not() -> None:
    model = refusing()
    before = model.forward(model.encode(["qa"]))
    found = switching_curve(model, ending_in_a(), refuses, [f"L{LAYER}E{EXPERT}"], counts=[1], max_new_tokens=2)
    start, one = found.table.sort_values("count").itertuples()
    assert start.score == 1.0 and one.score == 0.0 and one.change == -1.0
    assert one.control >= 0.9 and one.q < 0.05 and np.isnan(start.q)
    assert all(name.startswith(f"L{LAYER}E") and name != f"L{LAYER}E{EXPERT}" for (name,) in found.random)
    assert torch.equal(model.forward(model.encode(["qa"])), before) and model.n_hooks == 0


@pytest.mark.parametrize("mode", ["drop", "drop_renorm"])
def test_every_way_of_switching_off_works_from_a_map(mode: str, tmp_path: object) -> None:
    model = refusing()
    ranking = expert_map(model, prompts(), target="yes", draws=20)
    found = switching_curve(
        model, ending_in_a(), refuses, ranking, counts=[1, 2], mode=mode, max_new_tokens=1, controls=3
    )
    assert found.ranked[0] == f"L{LAYER}E{EXPERT}" and found.table.score.tolist() == [1.0, 0.0, 0.0]
    assert found.frame().columns[:6].tolist() == ["count", "score", "low", "high", "control", "q"]
    back = SwitchingCurve.load(found.save(f"{tmp_path}/curve"))
    assert back.frame().equals(found.frame()) and back.random == found.random
    assert len(found.figure().data) == 3


def test_forcing_the_planted_expert_on_brings_the_behaviour_where_it_was_not() -> None:
    model = refusing()
    calm = Prompts.of(["q" * (2 + n % 3) + "xyz"[: n % 4] + "q" for n in range(6)])
    found = switching_curve(model, calm, refuses, [f"L{LAYER}E{EXPERT}"], [1], "force", max_new_tokens=1, controls=4)
    assert found.table.score.tolist() == [0.0, 1.0] and "forced on" in found.figure().layout.title.text
    assert found.table.control.iloc[1] < 0.5, "forcing another expert brings nothing"


def test_stand_ins_match_layer_and_frequency_and_are_fixed_by_the_seed() -> None:
    frequency = {(layer, expert): 0.1 * expert for layer in range(2) for expert in range(8)}
    ranked = [(0, 4), (0, 5), (1, 0)]
    drawn = matched_cells(ranked, frequency, draws=10, seed=3)
    assert drawn == matched_cells(ranked, frequency, draws=10, seed=3)
    for draw in drawn:
        assert [layer for layer, _ in draw] == [0, 0, 1] and len(set(draw)) == 3 and not set(draw) & set(ranked)
        assert all(abs(frequency[a] - frequency[b]) <= 0.41 for a, b in zip(ranked, draw, strict=True))
    with pytest.raises(UserError, match="choose fewer"):
        matched_cells([(0, e) for e in range(8)] + [(1, 0)], frequency, draws=1, seed=0)


def test_errors_say_what_to_do() -> None:
    model = planted()
    with pytest.raises(UserError, match="ask for 4 experts but the ranking holds 1"):
        switching_curve(model, ending_in_a(), refuses, ["L1E5"], counts=[4])
    with pytest.raises(UserError, match="not an expert"):
        switching_curve(model, ending_in_a(), refuses, ["L1H5"], counts=[1])
