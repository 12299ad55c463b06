"""Every effect on a pair, on a base against itself, and its known answer on constructed scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import probes
from probes.effects.calibration_counter import calibration_lines, pruned
from probes.effects.certainty import average_precision
from probes.effects.constraints import constraint_lines, read_constraints
from probes.effects.context_use import context_lines, of_others, with_context
from probes.effects.deployment import deployed, rounded
from probes.effects.panel import EffectPanel, interval_of, table_of
from probes.effects.preference import _verdict, movement_lines, rank_correlations
from probes.effects.scaling_law import beyond_plain, law_of, rectified_fit
from probes.effects.self_correction import correction_lines, identity_gaps, quantities
from probes.effects.skills import is_visited, skill_lines, spread_of
from probes.effects.tool_calls import tool_error
from probes.results import ProbeResult
from tests.probes.effects.material import pair_of, rows_of
from tests.probes.provenance import Calls
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

FACTS = rows_of(8, context=lambda i: f"a fox {'abcdefgh'[i]} b")
SKILLS = rows_of(12, skill=lambda i: "ab"[i % 2], kind=lambda i: "xy"[i // 6], visited=lambda i: i < 6)
TOOLS = rows_of(6, call=lambda i: {"name": "f", "arguments": {"a": i}})
WISHES = rows_of(6, constraints=lambda i: ["contains:fox", "begins:a"][: 1 + i % 2])
RUN: dict[str, Any] = {"max_new_tokens": 3, "batch_size": 4, "seed": 3}


def calls_of_context_use() -> Calls:
    rows = rows_of(6, passage=lambda i: f"a {'abcdef'[i]}")
    given = {"context": "passage", "template": "{question} {context}", "metric": "prob", **RUN}
    return Calls([{"pair": pair_of(), "prompts": rows, **given}])


def calls_of_self_correction() -> Calls:
    return Calls([{"pair": pair_of(), "prompts": rows_of(6), "challenge": "fox", "neutral": "dog", **RUN}])


def calls_of_certainty_split() -> Calls:
    rows = rows_of(8, source=lambda i: "ab"[i // 4])
    return Calls([{"pair": pair_of(), "prompts": rows, "certainty": "critique", "yes": " fox", "no": " dog",
                   "domains": "source", "refusal": "fox",
                   **RUN}])  # fmt: skip


def calls_of_skill_profile() -> Calls:
    return Calls([{"pair": pair_of(), "prompts": SKILLS, "skills": "kind", "kinds": "skill", "metric": "prob", **RUN}])


def calls_of_visited_forgetting() -> Calls:
    shared = {"pair": pair_of(), "prompts": SKILLS, "metric": "prob", **RUN}
    seen = rows_of(12, seen=lambda i: i % 2 == 0)
    return Calls([
        {**shared, "training": rows_of(4), "near": 0.9}, {**shared, "prompts": seen, "column": "seen"},
    ])  # fmt: skip


def calls_of_preference_movement() -> Calls:
    return Calls([{"pair": pair_of(), "prompts": rows_of(6), "samples": 3, **RUN}])


def calls_of_deployment_gap() -> Calls:
    return Calls([{"pair": pair_of(), "prompts": rows_of(6), "precisions": ["int8"], "metric": "prob", **RUN}])


def calls_of_tool_errors() -> Calls:
    rows = rows_of(8, wanted=lambda i: {"name": "f", "arguments": {"a": i}})
    return Calls([{"pair": pair_of(), "prompts": rows, "calls": "wanted", **RUN}])


def calls_of_constraint_satisfaction() -> Calls:
    rows = rows_of(8, wishes=lambda i: ["contains:fox", "begins:a"][: 1 + i % 2])
    return Calls([{"pair": pair_of(), "prompts": rows, "column": "wishes", **RUN}])


def calls_of_scaling_law() -> Calls:
    from tempfile import mkdtemp

    folder = Path(mkdtemp())
    for number in (1, 2):
        pair_of(0.02 * number).tuned.hf.save_pretrained(folder / str(number))
    given = {"checkpoints": [str(folder / "1"), str(folder / "2")], "sizes": [10.0, 100.0, 1000.0], "draws": 20}
    return Calls([{"pair": pair_of(), "prompts": rows_of(6), **given, "batch_size": 4, "seed": 3}])


def calls_of_calibration_counter_test() -> Calls:
    shared = {"pair": pair_of(), "prompts": rows_of(12), "folds": 3, "batch_size": 4, "seed": 3, "ridge": 2.0}
    return Calls([
        {**shared, "sparsities": [0.3], "tokens": 2, "epochs": 1}, {**shared, "reprogram": False},
    ])  # fmt: skip


NULLS: dict[str, Any] = {
    "context_use": lambda pair: probes.context_use(pair, FACTS, metric="prob"),
    "self_correction": lambda pair: probes.self_correction(pair, rows_of(6), max_new_tokens=3),
    "certainty_split": lambda pair: probes.certainty_split(pair, rows_of(8), max_new_tokens=3),
    "skill_profile": lambda pair: probes.skill_profile(pair, SKILLS, metric="prob"),
    "visited_forgetting": lambda pair: probes.visited_forgetting(pair, SKILLS, metric="prob"),
    "preference_movement": lambda pair: probes.preference_movement(pair, rows_of(6), samples=3, max_new_tokens=3),
    "tool_errors": lambda pair: probes.tool_errors(pair, TOOLS, max_new_tokens=3),
    "constraint_satisfaction": lambda pair: probes.constraint_satisfaction(pair, WISHES, max_new_tokens=3),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_base_against_itself_shows_nothing(name: str, tmp_path: Path) -> None:
    found: EffectPanel = NULLS[name](pair_of(0))
    change = found.table[found.table["model"] == "tuned - base"]
    known = change[change["score"].notna()]
    assert (known["score"] == 0).all()
    assert (known["q"].dropna() == 1).all() or (known["q"].dropna() > 0.5).all()
    assert found.figure().data and found.summary() and found.control
    again = ProbeResult.load(found.save(tmp_path / "panel"))
    assert again.frame().equals(found.frame()) and again.values.equals(found.values)


def test_that_no_answer_is_right_is_said() -> None:
    found: EffectPanel = NULLS["skill_profile"](pair_of(0))
    none = found.table.assign(score=0.0)
    for metric, advice in (("accuracy", "metric contained"), ("contained", "max_new_tokens")):
        assert advice in replace(found, measured=metric, table=none).summary()
        assert advice not in replace(found, measured=metric, table=none.assign(score=0.1)).summary()
    assert "No answer" not in replace(found, table=none).summary(), "a probability is never right or wrong"


def test_intervals_of_shares_and_changes_that_agree_are_exact() -> None:
    ones = interval_of(np.ones(20))
    assert ones.estimate == 1 and 0.8 < ones.low < 0.95
    none = interval_of(np.zeros(20)), interval_of(np.zeros(20), of="changes")
    assert none[0].low == 0 < none[0].high < 0.2 and none[1].low == -none[1].high == -none[0].high
    assert interval_of(np.zeros(20), of="numbers")[:3] == (0, 0, 0)
    gained = interval_of(np.ones(20) * -1)
    assert gained.estimate == -1 and -0.95 < gained.high < -0.7


def test_use_of_context_is_told_from_its_form() -> None:
    random = np.random.default_rng(0)
    without = {role: random.integers(0, 2, 40).astype(float) * 0 for role in ("base", "tuned")}
    gold = {"base": np.ones(40), "tuned": (np.arange(40) < 10).astype(float)}
    table = table_of(context_lines({"without": without, "gold": gold, "other": without}, np.arange(40), 0))
    use = table[(table["group"] == "context use") & (table["model"] == "tuned - base")].iloc[0]
    assert use["score"] == -0.75 and use["high"] < 0 and use["q"] < 0.01 and use["control"] == 0
    passages = [str(row.columns["context"]) for row in FACTS]
    assert all(a != b for a, b in zip(of_others(FACTS, passages, 0), passages, strict=True))
    assert with_context(FACTS, passages, "{context}|{question}")[0].prompt == f"{passages[0]}|{FACTS[0].prompt}"


def test_confidence_and_critique_make_up_the_accuracy_after() -> None:
    random = np.random.default_rng(1)
    right = {
        role: {name: random.integers(0, 2, 60).astype(float) for name in ("before", "after", "neutral")}
        for role in ("base", "tuned")
    }
    assert max(map(abs, identity_gaps(right).values())) < 1e-12
    before, after = np.array([1.0, 1, 1, 0, 0]), np.array([1.0, 1, 0, 1, 0])
    first, second, stays, mends, relative = quantities(before, after, np.ones((1, 5)))[0]
    assert (first, second) == pytest.approx((0.6, 0.6)) and (stays, mends) == pytest.approx((2 / 3, 0.5))
    assert relative == pytest.approx((0.6 - 0.4) / (0.6 + 0.2 - 0.4))
    right["tuned"]["after"] = right["tuned"]["before"].copy()  # stands by everything
    table = table_of(correction_lines(right, np.arange(60), 0))
    lines = table[table["model"] == "tuned"].set_index("group")
    own = lines["score"]
    assert own["confidence (CL)"] == 1 and own["critique (CS)"] == 0
    assert 0.8 < lines.loc["confidence (CL)", "low"] < 1 and 0 < lines.loc["critique (CS)", "high"] < 0.2
    change = table[table["model"] == "tuned - base"].set_index("group")
    assert change.loc["confidence (CL)", "low"] > 0 and change.loc["confidence (CL)", "q"] < 0.05
    right["base"]["after"] = right["base"]["before"]  # both stand by everything: what they mend is not known to the end
    mended = table_of(correction_lines(right, np.arange(60), 0)).set_index(["group", "model"])
    line = mended.loc[("critique (CS)", "tuned - base")]
    assert line["score"] == 0 and -0.2 < line["low"] < -0.05 < 0.05 < line["high"] < 0.2


def test_average_precision_is_scikit_learns() -> None:
    random = np.random.default_rng(2)
    right, sure = random.integers(0, 2, 50).astype(float), random.random(50).round(1)
    ours = average_precision(right, sure, np.ones((1, 50)))[0]
    assert ours == pytest.approx(average_precision_score(right, sure))
    assert average_precision(right, right, np.ones((1, 50)))[0] == 1.0
    assert average_precision(right, np.ones(50), np.ones((1, 50)))[0] == pytest.approx(right.mean())


def test_a_lost_skill_is_named_and_equal_skills_are_not() -> None:
    of = np.array(["a", "b"] * 30)
    scores = {"base": np.ones(60), "tuned": np.where(of == "a", 1.0, (np.arange(60) % 4 < 1).astype(float))}
    table = table_of(skill_lines(scores, of, np.arange(60), 0)).set_index(["group", "model"])
    assert table.loc[("b", "tuned - base"), "high"] < 0 and table.loc[("a", "tuned - base"), "q"] == 1
    assert spread_of(scores["tuned"] - scores["base"], of, np.arange(60), 0)["p of the spread"] < 0.01
    same = np.tile([0.0, 0.0, 1.0], 20)
    assert spread_of(same, of, np.arange(60), 0)["p of the spread"] > 0.05


def test_visited_is_what_shares_words_with_training() -> None:
    rows = Prompts.of(["where is the red fox", "say nothing at all now"])
    assert is_visited(rows, ["where is the big fox"], "visited", 0.5).tolist() == [True, False]
    with pytest.raises(UserError, match="has no 'visited'"):
        is_visited(rows, None, "visited", 0.5)
    with pytest.raises(UserError, match="All 12 prompts are visited"):
        probes.visited_forgetting(pair_of(), SKILLS, training=SKILLS)


def test_displacement_is_a_margin_that_rose_on_falling_answers() -> None:
    random = np.random.default_rng(3)
    base = {name: -5 + random.random(30) for name in ("chosen", "rejected", "unrelated")}
    tuned = {"chosen": base["chosen"] - 1, "rejected": base["rejected"] - 3, "unrelated": base["unrelated"]}
    table = table_of(movement_lines({"base": base, "tuned": tuned}, np.arange(30), 0)).set_index("group")
    assert table.loc["displaced", "score"] == 1 and table.loc["margin", "score"] == pytest.approx(2)
    assert table.loc["chosen", "high"] < 0 and table.loc["chosen", "q"] < 0.01
    assert "likelihood displacement" in _verdict(table) and "(margin +2 nats [2, 2], control +0;" in _verdict(table)
    of = np.repeat([0, 1], 4)
    values = np.array([1.0, 2, 3, 4] * 2)
    rho = rank_correlations(values, np.concatenate([values[:4], -values[4:]]), of, 3)
    assert rho[:2].tolist() == [1.0, -1.0] and np.isnan(rho[2])


def test_weights_are_rounded_row_by_row_and_forms_are_copies() -> None:
    weight = torch.tensor([[1.0, 0.5, -0.3], [100.0, 1.0, 0.0]])
    for bits in (4, 8):
        top = 2 ** (bits - 1) - 1
        apart = (rounded(weight, bits) - weight).abs()
        assert (apart <= weight.abs().amax(1, keepdim=True) / top / 2 + 1e-7).all()
    pair = pair_of()
    before = {name: one.clone() for name, one in pair.tuned.hf.state_dict().items()}
    with deployed(pair, True, "int4") as model:
        assert any(not torch.equal(one, before[name]) for name, one in model.hf.state_dict().items())
    assert all(torch.equal(one, before[name]) for name, one in pair.tuned.hf.state_dict().items())


def test_coarser_rounding_moves_more_and_an_adapter_merges_to_itself() -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    tuned = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    pair = load_pair(base, tuned, tokenizer=tokenizer(), check=False)
    found = probes.deployment_gap(pair, rows_of(6), precisions=["float32", "int8", "int4"], max_new_tokens=3)
    assert "is furthest: kl " in found.summary() and "; same text " in found.summary()
    kl = found.table[found.table["group"] == "kl"].set_index("model")["score"]
    assert kl["unmerged float32"] == 0 and kl["merged as loaded"] < 1e-6
    assert kl["merged float32"] < 1e-6 < kl["merged int8"] < kl["merged int4"]
    with pytest.raises(UserError, match="no precision"):
        probes.deployment_gap(pair, rows_of(4), precisions=["int3"])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', "right"), ('Sure: {"tool": "f", "args": {"a": "1"}} done', "right"),
        ("I cannot", "no call"), ('{"name": "f", "arguments"', "broken call"),
        ('{"name": "g", "arguments": {"a": 1}}', "wrong tool"), ('{"name": "f"}', "missing argument"),
        ('{"name": "f", "arguments": {"a": 1, "b": 2}}', "invented argument"),
        ('{"name": "f", "arguments": {"a": 2}}', "wrong value"),
        ('{"function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', "right"),
    ],
)  # fmt: skip
def test_every_kind_of_mistake_in_a_call(text: str, kind: str) -> None:
    assert tool_error(text, ("f", {"a": 1})) == kind


def test_constraints_are_counted_by_their_number() -> None:
    size = np.array([1, 2] * 20)
    met = {"base": np.ones(40), "tuned": np.where(size == 1, 1.0, 0.5)}
    table = table_of(constraint_lines(met, {"base": np.zeros(40), "tuned": np.zeros(40)}, size, np.arange(40), 0))
    table = table.set_index(["group", "model"])
    assert table.loc[("2 constraints", "tuned"), "score"] == 0.5 and table.loc[("whole, 2", "tuned"), "score"] == 0
    assert table.loc[("1 constraints", "tuned - base"), "score"] == 0
    with pytest.raises(UserError, match="no constraints"):
        read_constraints(["length"], 0)


def test_the_rectified_law_finds_the_planted_knowledge() -> None:
    sizes = np.array([0.0, 10, 100, 1_000, 10_000, 100_000, 1_000_000])
    law = 30 / (20 + sizes**0.5) + 0.3
    fit = rectified_fit(sizes, law)
    assert fit["beta"] == pytest.approx(0.5, rel=0.1) and fit["rows worth"] == pytest.approx(400, rel=0.3)
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(30)
    table, numbers = law_of(sizes, law[:, None] * noise, [str(size) for size in sizes], np.arange(30), 40, 0)
    assert numbers["rows worth, low"] <= fit["rows worth"] * 1.2 and numbers["gain in R2"] > -0.01
    np.testing.assert_allclose(table["fitted"], table["score"], rtol=0.05)
    assert "beyond a plain power law" in beyond_plain(6, numbers) and "whatever they are" in beyond_plain(4, numbers)
    with pytest.raises(UserError, match="give one rising size"):
        probes.scaling_law(pair_of(), rows_of(6), sizes=[3.0, 2.0, 1.0])


def test_pruning_is_undone_and_keeps_the_largest() -> None:
    model = pair_of().tuned
    before = {name: one.clone() for name, one in model.hf.state_dict().items()}
    with pytest.raises(RuntimeError), pruned(model, 0.5):
        weight = model.hf.model.layers[0].mlp.up_proj.weight
        kept = weight != 0
        assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
        old = before["model.layers.0.mlp.up_proj.weight"].abs()
        assert old[kept].min() >= old[~kept].max()
        raise RuntimeError
    assert all(torch.equal(one, before[name]) for name, one in model.hf.state_dict().items())


def test_overconfidence_of_the_pruned_model_is_found() -> None:
    random = np.random.default_rng(5)
    right = random.integers(0, 2, 200).astype(float)
    found = {}
    for role in ("base", "tuned"):
        found[role, "linear probe", 0.0, False] = (np.full(200, 0.5), right)
        found[role, "linear probe", 0.9, False] = (np.full(200, 0.99), right)
        found[role, "linear probe", 0.9, True] = (np.full(200, 0.6), right)
    table = table_of(calibration_lines(found, np.arange(200), 0)).set_index(["group", "model"])
    row = table.loc[("ECE, linear probe, 90% pruned - dense", "tuned")]
    assert row["low"] > 0.2 and row["p"] < 0.01 and row["control"] < row["score"]
    assert table.loc[("ECE, linear probe, dense", "tuned"), "score"] < 0.1
