"""behaviour_diff: each number is what the model says, intervals are over prompts, the null is null."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.workbench.behaviour.pushed import ROWS, Push
from workbench.behaviour import METRICS, BehaviourDiff, behaviour_diff
from workbench.behaviour.calibration import calibration_error
from workbench.behaviour.metrics import NEXT_TOKEN
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.stats.bootstrap import mean_interval

NEUTRAL = ["the quick brown fox jumps", "over the lazy dog"]


def pair_of(change: float) -> Any:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=change), tokenizer=tokenizer())


def bare_logits(model: AdaptedModel) -> torch.Tensor:
    with torch.no_grad():
        rows = [model.hf(**tokenizer()(row["prompt"], return_tensors="pt")).logits[0, -1] for row in ROWS]
    return torch.stack(rows)


def test_scores_are_those_of_the_bare_model() -> None:
    pair = pair_of(0.05)
    diff = behaviour_diff(pair, ROWS, metrics=list(NEXT_TOKEN))
    fox, dog = (tokenizer()(f"a{word}", add_special_tokens=False)["input_ids"][1] for word in (" fox", " dog"))
    logits, base = bare_logits(pair.tuned), bare_logits(pair.base)
    kl = (logits.softmax(-1) * (logits.log_softmax(-1) - base.log_softmax(-1))).sum(-1)
    assert diff.value("tuned", "logit_diff") == pytest.approx(float((logits[:, fox] - logits[:, dog]).mean()), abs=1e-4)
    assert diff.value("tuned", "prob") == pytest.approx(float(logits.softmax(-1)[:, fox].mean()), abs=1e-5)
    assert diff.value("tuned", "kl") == pytest.approx(float(kl.mean()), rel=1e-3)
    assert diff.value("base", "kl") == 0.0
    tuned = diff.table[(diff.table["model"] == "tuned")]
    assert (tuned["low"] <= tuned["estimate"]).all() and (tuned["estimate"] <= tuned["high"]).all()
    assert (tuned["change"] == 0).all() and (tuned["n"] == 12).all()


def test_base_against_itself_is_null_in_every_metric() -> None:
    base = tiny_model("llama")
    same = load_pair(base, base, tokenizer=tokenizer())
    diff = behaviour_diff(same, ROWS, metrics=list(METRICS), neutral=NEUTRAL, samples=2, max_new_tokens=4)
    assert set(diff.table["metric"]) == set(METRICS)
    differences = [name for name in diff.table if name.startswith(("change", "from_base"))]
    assert len(differences) == 6 and (diff.table[differences] == 0).all(axis=None)
    assert diff.value("tuned", "kl") == diff.value("tuned", "kl_base_model") == 0.0


def test_a_pair_that_differs_is_told_from_the_base_with_paired_intervals() -> None:
    diff = behaviour_diff(pair_of(0.05), ROWS, metrics=["prob", "ece", "perplexity", "brier"], neutral=NEUTRAL)
    wide = diff.rows.pivot(index="prompt", columns="model", values="prob")
    line = diff.table[(diff.table["model"] == "tuned") & (diff.table["metric"] == "prob")].iloc[0]
    paired = mean_interval((wide["tuned"] - wide["base"]).to_numpy())
    assert line[["from_base", "from_base_low", "from_base_high"]].tolist() == pytest.approx(list(paired)[:3])
    confidence, right = (
        diff.rows[diff.rows["model"] == "tuned"][name].to_numpy() for name in ("confidence", "accuracy")
    )
    assert diff.value("tuned", "ece") == pytest.approx(calibration_error(np.ones((1, 12)), confidence, right)[0])
    assert diff.value("tuned", "brier") == pytest.approx(np.mean((confidence - right) ** 2))
    assert len(diff.neutral) == 2 * len(NEUTRAL) and set(diff.calibration["model"]) == {"base", "tuned"}


def test_a_share_on_which_all_prompts_agree_has_the_exact_interval() -> None:
    fox = tokenizer()("a fox", add_special_tokens=False)["input_ids"][1]
    diff = behaviour_diff(pair_of(0.05), ROWS, {"pushed": Push(fox)}, metrics=["accuracy"])
    line = diff.table[diff.table["model"] == "pushed"].iloc[0]
    assert line["estimate"] == line["high"] == 1.0 and line["low"] == pytest.approx(0.025 ** (1 / 12))


def test_groups_are_drawn_together() -> None:
    pair = pair_of(0.05)
    twice = [{**row, "group": str(number // 2)} for number, row in enumerate([row for row in ROWS for _ in range(2)])]
    alone, grouped = (behaviour_diff(pair, rows, metrics=["prob"]).table for rows in (ROWS, twice))
    assert grouped[["estimate", "low", "high"]].to_numpy() == pytest.approx(
        alone[["estimate", "low", "high"]].to_numpy()
    )
    assert (grouped["n"] == 24).all()


def test_it_is_kept_told_and_shown(tmp_path: Path) -> None:
    pair = pair_of(0.05)
    diff = behaviour_diff(pair, ROWS, metrics=["accuracy", "ece", "refusal"], max_new_tokens=3, samples=1, seed=5)
    again = BehaviourDiff.load(diff.save(tmp_path / "diff"))
    for name in ("table", "rows", "texts", "calibration"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(diff, name))
    assert again.provenance == diff.provenance and again.prompts == Prompts.of(ROWS).hash and again.seed == 5
    assert diff.provenance.models["base"]["hash"] == pair.base.identity.hash
    assert diff.provenance.settings["samples"] == 1 and "torch" in diff.provenance.versions
    said = json.loads(diff.to_json())
    assert [row["estimate"] for row in said["rows"]] == pytest.approx(diff.table["estimate"].tolist())
    assert len(said["texts"]) == 12 * 2 * 2 and said["provenance"]["prompts"] == diff.prompts
    wide = diff.by_metric().set_index("metric")
    assert (
        wide.loc["ece", "tuned"] == diff.value("tuned", "ece")
        and wide.loc["ece", "tuned_high"] >= wide.loc["ece", "tuned"]
    )
    assert "accuracy" in str(diff) and set(diff.figures()) == {"behaviour", "calibration", "texts"}
    assert set(diff.changes()["model"]) == {"tuned"}
    with pytest.raises(UserError, match="models are base, tuned, metrics accuracy"):
        diff.value("tuned", "kl")


HOSTILE = "<script>alert(1)</script>"


def hostile_pair() -> tuple[Any, int]:
    """A pair whose vocabulary holds a script tag as one token."""
    words = copy.deepcopy(tokenizer())
    words.add_tokens([HOSTILE])
    base = tiny_model("llama", vocab_size=304)
    return load_pair(base, tuned_copy(base), tokenizer=words), words.convert_tokens_to_ids(HOSTILE)


def test_what_a_model_writes_is_shown_as_text() -> None:
    pair, script = hostile_pair()
    rows = [{"prompt": "the <img src=x onerror=alert(2)>", "answer": " fox"}]
    diff = behaviour_diff(pair, rows, {"<b>recipe": Push(script)}, metrics=["refusal", "accuracy"], max_new_tokens=3)
    assert diff.texts["text"].str.contains(HOSTILE, regex=False).any()
    shown = diff._repr_html_()
    assert "&lt;script&gt;" in shown and "<script" not in shown and "<img" not in shown and "<b>recipe" not in shown
    table = diff.figures()["texts"].data[0]
    cells = "".join(cell for column in table.cells.values for cell in column) + "".join(table.header["values"])
    assert "&lt;script&gt;" in cells and "<script" not in cells and "<img" not in cells and "<b>recipe" not in cells
    for trace in diff.figure().data:
        assert "<b>recipe" not in trace.hovertemplate + "".join(trace.y)


def test_an_adapter_pair_is_compared_on_one_copy() -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    alone = behaviour_diff(load_pair(base, base, tokenizer=tokenizer()), ROWS, metrics=["prob", "answer_logprob"])
    peft = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    pair = load_pair(base, peft.eval(), tokenizer=tokenizer())
    assert pair.one_copy
    metrics = ["prob", "answer_logprob", "kl_base_model", "same_as_base"]
    diff = behaviour_diff(pair, ROWS, {"pushed": Push(9)}, metrics=metrics, max_new_tokens=3, samples=1)
    for metric in ("prob", "answer_logprob"):
        assert diff.value("base", metric) == pytest.approx(alone.value("base", metric), abs=1e-6)
        assert diff.value("tuned", metric) != pytest.approx(diff.value("base", metric), rel=1e-3)
    assert diff.value("tuned", "kl_base_model") > 1e-3 and diff.value("base", "same_as_base") == 1.0


def test_a_recipe_is_applied_to_the_tuned_model_and_leaves_it() -> None:
    pair = pair_of(0.05)
    fox = tokenizer()("a fox", add_special_tokens=False)["input_ids"][1]
    diff = behaviour_diff(
        pair, ROWS, {"pushed": Push(fox)}, metrics=["accuracy"], controls={"random": [Push(9), Push(11)]},
        base_recipes={"base pushed": Push(fox)},
    )  # fmt: skip
    assert diff.value("pushed", "accuracy") == 1.0 and diff.value("base pushed", "accuracy") == 1.0
    assert diff.value("random", "accuracy") == 0.0
    assert pair.tuned.n_hooks == 0
    assert behaviour_diff(pair, ROWS, metrics=["accuracy"]).value("tuned", "accuracy") < 1.0
    figure = diff.figure()
    assert len(figure.data) == 5


def test_bad_input() -> None:
    pair = pair_of(0.01)
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        behaviour_diff(pair, ROWS, metrics=["acuracy"])
    with pytest.raises(UserError, match="distractor"):
        behaviour_diff(pair, [{"prompt": "the", "answer": " fox"}], metrics=["logit_diff"])
    with pytest.raises(UserError, match="no metric"):
        behaviour_diff(pair, ROWS, metrics=[])
    with pytest.raises(UserError, match="called 'tuned'"):
        behaviour_diff(pair, ROWS, {"tuned": Push(4)})
    with pytest.raises(UserError, match="no draws"):
        behaviour_diff(pair, ROWS, controls={"random": []})
    with pytest.raises(UserError, match="no answer"):
        behaviour_diff(pair, ["the quick"], metrics=["accuracy"])
