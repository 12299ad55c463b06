"""Dose and response: what each strength does, in one batch as one by one, beside random recipes and side effects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interventions as iv
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.workbench.behaviour.pushed import ROWS, Push, token
from workbench.behaviour import Dose, DoseResponse, behaviour_diff, dose_response
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.stats.controls import random_directions

STRENGTHS = [-1.0, 0.0, 0.5, 1.0]
NEUTRAL = ["the quick brown fox jumps", "over the lazy dog", "the dog jumps over the fox"]


@pytest.fixture(scope="module")
def pair() -> Any:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.05), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def vector(pair: Any) -> torch.Tensor:
    """Along the unembedding of "fox": the more of it, the likelier the answer."""
    row = pair.tuned.unembedding()[token("fox")].detach()
    return 40 * row / row.norm()


def offset(vector: torch.Tensor) -> iv.Recipe:
    return iv.Recipe([iv.Offset(2, vector, positions="last+generated")])


@pytest.mark.parametrize("metric", ["prob", "kl", "answer_logprob", "common_tokens"])
def test_each_strength_is_what_the_recipe_does_at_it(pair: Any, vector: torch.Tensor, metric: str) -> None:
    recipe = offset(vector)
    found = dose_response(
        pair, ROWS, iv.dose(recipe), STRENGTHS, metric=metric, neutral=NEUTRAL, max_new_tokens=3, batch_size=7
    )
    for place, strength in enumerate(STRENGTHS):
        one = behaviour_diff(
            pair, ROWS, recipe * strength, metrics=[metric, "perplexity"], neutral=NEUTRAL, max_new_tokens=3
        )
        rows = one.rows[one.rows["model"] == "tuned + recipe"][metric].to_numpy()
        assert found.values[place] == pytest.approx(rows, abs=2e-4)
        assert found.table["side"][place] == pytest.approx(one.value("tuned + recipe", "perplexity"), rel=1e-3)
    assert found.start == pytest.approx(
        behaviour_diff(pair, ROWS, metrics=[metric], max_new_tokens=3).value("tuned", metric), abs=1e-5
    )
    zero = found.table[found.table["strength"] == 0].iloc[0]
    assert (zero[["change", "change_low", "change_high"]] == 0).all()
    assert pair.tuned.n_hooks == 0


def test_the_response_rises_above_the_random_band_and_the_side_effect_shows(pair: Any, vector: torch.Tensor) -> None:
    random = [iv.dose(offset(random_direction)) for random_direction in random_directions(vector)]
    found = dose_response(
        pair,
        ROWS,
        iv.dose(offset(vector)),
        [0.0, 1.0],
        metric="prob",
        controls=random,
        out_of_scope=["lazy", "dog jumps"],
    )
    first, last = found.table.iloc[0], found.table.iloc[1]
    assert last["estimate"] > 0.8 > 0.2 > last["control_high"] >= last["control"] >= last["control_low"]
    assert first["control_low"] == pytest.approx(first["control_high"], abs=1e-6)
    assert first["side"] == pytest.approx(0, abs=1e-6) and last["side_low"] > last["side_control"] > 0
    assert found.control_values.shape == (10, 2, 12) and "10 random" in found.control
    assert last["low"] <= last["estimate"] <= last["high"] and last["n"] == 12
    assert len(found.figure().data) == 8


def test_a_recipe_a_function_and_rows_of_our_own_are_doses_too(pair: Any, vector: torch.Tensor) -> None:
    fox = token("fox")
    push = Push(fox, 40.0, positions="last+generated")
    wanted = dose_response(pair, ROWS, push, STRENGTHS, metric="prob").values
    for given in (
        lambda strength: push * strength,
        Dose(lambda strength: push * strength, push.rows),
        iv.dose(offset(vector)),
    ):
        found = dose_response(pair, ROWS, given, STRENGTHS, metric="prob", batch_size=5)
        assert found.values == pytest.approx(wanted, abs=1e-5)


def test_a_knob_set_to_values_as_one_batch(pair: Any, vector: torch.Tensor) -> None:
    def knob(value: float) -> iv.Recipe:
        return iv.Recipe([iv.SubspaceKnob(2, vector / vector.norm(), value, positions="last")])

    values = [-20.0, 0.0, 20.0, 40.0]
    batch = Dose(knob, lambda given: iv.per_row([knob(one) for one in given]))
    found, single = (dose_response(pair, ROWS, one, values, metric="prob") for one in (batch, knob))
    assert found.values == pytest.approx(single.values, abs=1e-5)
    assert (np.diff(found.table["estimate"]) > 0).all() and found.table["change_low"].iloc[-1] > 0.5


def test_weights_are_swept_run_by_run(pair: Any) -> None:
    graft = iv.Recipe([iv.Graft.from_pair(pair)])
    found = dose_response(pair, ROWS, iv.dose(graft), [0.0, 1.0], metric="kl", on="base")
    assert iv.dose(graft).rows is None
    assert found.start == 0.0 and found.table["estimate"][0] == 0.0
    assert found.table["estimate"][1] == pytest.approx(behaviour_diff(pair, ROWS).value("tuned", "kl"), rel=1e-4)


def test_a_dose_of_the_base_against_itself_is_null() -> None:
    hf = tiny_model("llama")
    same = load_pair(hf, hf, tokenizer=tokenizer())
    found = dose_response(same, ROWS, Push(token("fox"), 0.0), [0.0, 1.0, 3.0], metric="prob", neutral=NEUTRAL)
    assert (found.table[["change", "change_low", "change_high"]] == 0).all(axis=None)
    assert found.table["side"].nunique() == 1


def test_it_is_kept_and_told(pair: Any, vector: torch.Tensor, tmp_path: Path) -> None:
    found = dose_response(pair, ROWS, iv.dose(offset(vector)), STRENGTHS)
    again = DoseResponse.load(found.save(tmp_path / "dose"))
    assert again.table.equals(found.table) and np.array_equal(again.values, found.values)
    assert again.provenance == found.provenance and again.metric == "accuracy"
    assert found.provenance.models["tuned"]["hash"] == pair.tuned.identity.hash
    assert '"strength"' in found.to_json() and "12 prompts" in found.summary() and "<table" in found._repr_html_()


def test_bad_input(pair: Any, vector: torch.Tensor) -> None:
    recipe = offset(vector)
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        dose_response(pair, ROWS, recipe, [1.0], metric="acuracy")
    with pytest.raises(UserError, match="at least one finite strength"):
        dose_response(pair, ROWS, recipe, [])
    with pytest.raises(UserError, match="at least 10 random recipes; got 3"):
        dose_response(pair, ROWS, recipe, [1.0], controls=[recipe] * 3)
    with pytest.raises(UserError, match="int has no strength"):
        dose_response(pair, ROWS, 3, [1.0])
    with pytest.raises(UserError, match="Unknown side 'left'"):
        dose_response(pair, ROWS, recipe, [1.0], on="left")
    with pytest.raises(UserError, match="Did you mean 'neutral'"):
        dose_response(pair, ROWS, recipe, [1.0], neutrals=["x"])
    with pytest.raises(UserError, match="Unknown metric 'perplexity'"):
        dose_response(pair, ROWS, recipe, [1.0], metric="perplexity", neutral=NEUTRAL)
