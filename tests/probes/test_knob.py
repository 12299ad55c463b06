"""The knob against an analytic model: what is planted is found, and controls find nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probes.knob.find import Setup, find_knob
from probes.knob.intents import intent_pairs, partners
from probes.knob.result import Knob
from probes.knob.subspace import Training, mean_difference, orthonormal, random_basis, set_to, swap
from probes.knob.trial import Trial
from tests.probes.planted_knob import WIDTH, Planted, planted_knob
from workbench.errors import UserError
from workbench.prompts.collection import Prompts

PLANTED = planted_knob()
QUICK = Training(steps=10)
FEW = Setup(draws=1, values=3)


@pytest.fixture(scope="module")
def knob() -> Knob:
    return find_knob(PLANTED.pair, PLANTED.prompts, layers=[0])


def trial(planted: Planted = PLANTED) -> Trial:
    tuned = planted.pair.tuned
    return Trial.of("tuned", tuned, intent_pairs(Prompts.of(planted.prompts), tuned), 32)


def test_the_learned_direction_is_the_planted_one_and_random_ones_do_nothing(knob: Knob) -> None:
    row = knob.table.iloc[0]
    assert row["score"] == 1.0 and row["low"] > 0.8 and row["control"] <= 0.02 and row["q"] < 0.01
    assert abs(float(knob.direction[:, 0] @ PLANTED.u)) >= 0.85
    assert row["means"] == 1.0 and row["patched"] == 1.0
    assert float(knob.direction[:, 0] @ PLANTED.u) > 0, "the positive end is the context"


def test_setting_it_decides_both_ways_and_in_the_base_too(knob: Knob) -> None:
    flips = knob.flips.set_index(["model", "intent"])
    for model in ("tuned", "base"):
        assert flips.loc[(model, "context"), "share"] == 1.0 and flips.loc[(model, "prior"), "share"] == 1.0
    assert flips.loc[("tuned", "context"), "before"] == 0.0 and flips["control"].max() <= 0.5
    assert flips.loc["tuned"]["control"].max() <= 0.05
    assert knob.settings["context"] > 0 > knob.settings["prior"]
    slope = knob.sweep.query("model == 'tuned' and direction == 'knob' and intent == 'context'")
    assert slope["share"].iloc[0] == 0.0 and slope["share"].iloc[-1] == 1.0


@pytest.mark.parametrize("intent", ["context", "prior"])
def test_its_recipe_does_in_the_model_what_the_probe_measured(knob: Knob, intent: str) -> None:
    tuned, ran = PLANTED.pair.tuned, trial()
    with knob.recipe(intent).applied(tuned):
        says = tuned.forward(tuned.encode(PLANTED.prompts), logits="last")[:, -1].argmax(-1)
    assert torch.equal(says, ran.answers_of(knob.intents.index(intent)))
    with pytest.raises(UserError, match="Unknown intent"):
        knob.recipe("contxt")


def test_full_rank_is_activation_patching_and_a_constant_is_the_swap() -> None:
    ran = trial()
    ends = ran.ends(0)
    sources = ends[partners(len(ends))]
    full = random_basis(WIDTH, WIDTH, 3)
    assert torch.allclose(swap(ends, sources, full), sources, atol=1e-5)
    assert np.array_equal(ran.swapped(0, full), ran.patched(0))
    u = PLANTED.u[:, None]
    assert torch.allclose(set_to(ends, u, sources @ u), swap(ends, sources, u), atol=1e-6)
    once = set_to(ends, u, torch.tensor([1.5]))
    assert torch.allclose(set_to(once, u, torch.tensor([1.5])), once, atol=1e-6), "setting twice is setting once"


def test_the_difference_of_means_is_a_reference() -> None:
    assert abs(float(mean_difference(trial().ends(0))[:, 0] @ PLANTED.u)) > 0.95
    wide = mean_difference(trial().ends(0), rank=3)
    assert torch.allclose(wide.T @ wide, torch.eye(3), atol=1e-5)


def test_a_learning_rate_too_small_does_not_move() -> None:
    still = find_knob(PLANTED.pair, PLANTED.prompts, layers=[0], training=Training(lr=1e-5, steps=20), setup=FEW)
    assert still.table["score"].iloc[0] < 0.1


def test_higher_rank_and_a_result_file(tmp_path: Path) -> None:
    wide = find_knob(PLANTED.pair, PLANTED.prompts, layers="all", training=Training(rank=2, steps=150), setup=FEW)
    assert wide.layer == 0 and wide.direction.shape == (WIDTH, 2)
    assert wide.table.set_index("layer")["score"][0] >= 0.9
    back = Knob.load(wide.save(tmp_path / "knob"))
    assert torch.equal(back.direction, wide.direction) and back.settings == wide.settings
    assert list(back.frame().columns[:6]) == ["layer", "score", "low", "high", "control", "q"]
    assert "set value" in back.figure().to_json() and "held out" in back._repr_html_()


def test_nothing_to_localize_says_both_numbers() -> None:
    same = SimpleNamespace(base=PLANTED.pair.tuned, tuned=PLANTED.pair.tuned)
    with pytest.raises(UserError, match=r"nothing to localize.*100%.*100%"):
        find_knob(same, PLANTED.prompts, layers=[0])


def test_clashes_and_incomplete_groups_are_counted() -> None:
    rows = [dict(row) for row in PLANTED.prompts]
    rows[1]["answer"] = rows[0]["answer"]
    found = find_knob(PLANTED.pair, rows[:-1], layers=[0], training=QUICK, setup=FEW)
    assert found.counts["first_token_clash"] == 1 and found.counts["incomplete"] == 1
    assert found.counts["given"] == 80 and found.counts["train"] + found.counts["held_out"] == 78


def test_answers_that_begin_alike_are_read_to_where_they_part() -> None:
    """The same pairs with a word before each answer: what both say alike is read with the prompt."""
    rows = [dict(row) for row in PLANTED.prompts][:8]
    word = str(rows[0]["answer"])
    longer = [{**row, "answer": f"{word} {row['answer']}"} for row in rows]
    model = PLANTED.pair.tuned
    plain, read_on = (intent_pairs(Prompts.of(given), model) for given in (rows, longer))
    assert read_on.answers.tolist() == plain.answers.tolist() and len(read_on) == len(plain)
    assert read_on.counts["read_to_the_difference"] == 4 and plain.counts["read_to_the_difference"] == 0
    assert all(more[:-1] == ids for more, ids in zip(read_on.ids, plain.ids, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intent": "context"}, "two intents"),
        ({"group": None}, "group"),
        ({"answer": "a3"}, "same token"),
    ],
)
def test_bad_prompts_are_refused(change: dict[str, str], message: str) -> None:
    rows = [{**row, **change} for row in PLANTED.prompts]
    with pytest.raises(UserError, match=message):
        find_knob(PLANTED.pair, rows, layers=[0])


def test_what_is_kept_together_is_never_split() -> None:
    rows = [{**row, "relation": f"r{int(row['group'][1:]) % 7}"} for row in PLANTED.prompts]
    found = find_knob(
        PLANTED.pair,
        rows,
        layers=[0],
        training=QUICK,
        setup=Setup(keep_together="relation", draws=1, values=3),
    )
    held = {int(group[1:]) % 7 for group in found.natural["group"]}
    assert len(held) == 2


def test_orthonormal_keeps_what_is_orthonormal() -> None:
    basis = random_basis(8, 3, 0)
    assert torch.allclose(orthonormal(basis), basis, atol=1e-6)
