"""A planted refusal is found and turned off on prompts it was not found on; base against base finds nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interventions as iv
import probes
import workbench as wb
from probes.directions.contrasting import SCOPES
from probes.directions.material import Reading
from probes.directions.result import FoundDirection
from probes.directions.trying import Candidate, Outcome, cheapest
from tests.tiny import tiny_model, tokenizer
from workbench import organisms
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair

FOXES = [
    {"prompt": f"the {one} fox {number}", "label": one, "group": str(number)}
    for one in ("quick", "lazy") for number in range(10)
]  # fmt: skip


def outcome(behaviour: float, perplexity: float) -> Outcome:
    shows = Reading(np.array([behaviour]), np.zeros(1), np.ones(1))
    return Outcome(shows, shows, np.zeros(1), np.zeros(1), perplexity)


def test_a_recipe_that_harms_neutral_texts_is_not_chosen() -> None:
    own = {"base": outcome(0.0, 10.0), "tuned": outcome(1.0, 10.0)}
    names = [Candidate((layer,), "last", "all") for layer in range(3)]
    tried = [(names[0], outcome(0.0, 10.4)), (names[1], outcome(0.1, 10.1)), (names[2], outcome(0.3, 10.0))]
    assert tried[0][1].rise(own["tuned"]) == pytest.approx(0.04)
    assert cheapest(tried, own, 0.02) == names[1], "the least cost that keeps to the bar"
    assert cheapest(tried, own, 0.05) == names[0] and cheapest(tried, own, 0.0) == names[2]
    assert cheapest(tried[:1], own, 0.0) == names[0], "where none keeps to it, the best all the same"
    unread = [(name, outcome(0.1 * number, float("nan"))) for number, name in enumerate(names)]
    assert cheapest(unread, own, 0.02) == names[0], "without neutral texts the cost alone decides"


def test_a_recipe_that_does_nothing_is_not_chosen_for_harming_nothing() -> None:
    own = {"base": outcome(0.0, 10.0), "tuned": outcome(1.0, 10.0)}
    names = [Candidate((layer,), "last", "all") for layer in range(3)]
    tried = [(names[0], outcome(0.0, 11.9)), (names[1], outcome(0.6, 10.5)), (names[2], outcome(1.0, 10.0))]
    assert cheapest(tried, own, 0.02) == names[0], "the others leave more than half of it"
    tried.append((Candidate((9,), "last", "all"), outcome(0.1, 10.5)))
    assert cheapest(tried, own, 0.02) == tried[-1][0], "where none keeps to the bar, a rise beyond it counts as cost"


def test_the_first_token_is_never_touched() -> None:
    """A text that stands alone has no prompt but its first token, a sink: nothing may act there."""
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    ids = torch.arange(5, 15)[None]
    for positions in SCOPES:
        recipe = iv.Recipe([iv.Offset(1, torch.ones(model.d_model), positions=positions)])
        kept: list[torch.Tensor] = []
        reader = SiteHook(Site("resid_post", 1), lambda value, ctx, kept=kept: kept.append(value.clone()))
        with model.hooked([reader]):
            model.forward(ids, logits=None)
        with recipe.applied(model, prompt_lengths=[1]), model.hooked([reader]):
            model.forward(ids, logits=None)
        moved = (kept[1] - kept[0]).abs().amax(-1)[0] > 0
        assert not moved[0] and moved[1:].any() == (positions != "last - first"), positions


def test_too_few_controls_are_refused_before_any_text_is_written() -> None:
    pair = load_pair(tiny_model("llama", 0), tiny_model("llama", 1), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="at least 10 random draws"):
        probes.find_direction(pair, FOXES, "length", controls=2)


def test_base_against_base_finds_nothing() -> None:
    same = load_pair(tiny_model("llama", 0), tiny_model("llama", 0), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="Nothing to find: 'length'"):
        probes.find_direction(same, FOXES, "length", max_new_tokens=3)


def test_what_cannot_be_searched_is_a_sentence() -> None:
    pair = load_pair(tiny_model("llama", 0), tiny_model("llama", 1), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="have 3 labels"):
        probes.find_direction(pair, [*FOXES, {"prompt": "a dog", "label": "dog"}], "length")
    with pytest.raises(UserError, match="each part needs 4"):
        probes.find_direction(pair, FOXES[:3] + FOXES[-3:], "length", max_new_tokens=2)
    with pytest.raises(UserError, match="Unknown behaviour 'refusl'"):
        probes.find_direction(pair, FOXES, "refusl")


@pytest.mark.slow
def test_the_planted_refusal_is_turned_off_and_on(tmp_path: Path) -> None:
    toy = organisms.build("refusal-moe")
    pair = load_pair(toy.base, toy.tuned)
    rows = [
        {"prompt": row["prompt"], "label": row["topic"], "group": str(number)}
        for number, row in enumerate(toy.splits["validation"])
    ]
    direction = probes.find_direction(pair, rows, "refusal", max_new_tokens=3, limit=12)
    lines = direction.held_out.set_index("model")
    assert lines.loc["tuned", "behaviour"] > 0.9 and lines.loc["base", "behaviour"] == 0
    assert lines.loc["tuned + recipe", "behaviour"] < 0.3 < lines.loc["tuned + random", "behaviour"]
    assert direction.frame()["score"].is_monotonic_decreasing and (direction.frame()["q"] < 0.05).any()
    again = FoundDirection.load(direction.save(tmp_path / "found.safetensors"))
    off = wb.behaviour_diff(pair, rows, {"off": again.recipe}, metrics=["refusal"], max_new_tokens=3)
    assert off.value("off", "refusal") < 0.03 < 0.1 < off.value("tuned", "refusal")
    assert direction.figure().data and "held-out" in direction.summary()
