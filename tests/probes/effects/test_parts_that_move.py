"""Tokens that tell right from faulty, attributes that should stay, and token scores as the tuned model's rival."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import probes
from probes.attributes.token_guidance import token_scores
from probes.effects.fault_tokens import differing, differing_lines
from probes.effects.undoing import continued
from probes.results import ProbeResult
from tests.probes.effects.material import WORDS, pair_of, rows_of
from tests.probes.provenance import Calls
from tests.tiny import tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
CODE = Prompts.of([
    {"prompt": f"the {a} {b}", "answer": f" quick brown {b}\n jumps over the lazy dog\n the fox",
     "distractor": f" quick brown {b}\n jumps over the lazy fox\n the fox"}
    for a in "abcd" for b in "xyz"
])  # fmt: skip
TEXTS = Prompts.of([f"the {a} {b}" for a in "abcdef" for b in ("fox", "dog")])


def calls_of_fault_tokens() -> Calls:
    return Calls([{"pair": pair_of(), "prompts": CODE, "batch_size": 3, "seed": 3}])


def calls_of_pollution() -> Calls:
    given = {
        "wanted": ["punctuation"],
        "others": ["length"],
        "samples": 2,
        "max_new_tokens": 4,
        "batch_size": 3,
        "seed": 3,
    }
    return Calls([{"pair": pair_of(), "prompts": rows_of(8), **given}])


def calls_of_token_guidance() -> Calls:
    given = {"behaviour": "word_length", "strengths": [1.5], "kept": rows_of(2), "samples": 2, "max_new_tokens": 4,
             "batch_size": 3, "seed": 3}  # fmt: skip
    return Calls([{"pair": pair_of(), "prompts": TEXTS, **given}])


def calls_of_undoing() -> Calls:
    texts = Prompts.of(["the quick brown fox jumps over", "the lazy dog sleeps over the"])
    given = {"texts": texts, "instructions": rows_of(4), "rank": 2, "epochs": 1, "learning_rate": 1e-2, "batch_size": 2,
             "draws": 1, "seed": 3}  # fmt: skip
    return Calls([{"pair": pair_of(), "prompts": rows_of(8), **given}])


def leaning(word: str, push: float) -> ModelPair:
    """The tiny llama beside a copy whose head says one word more often, wherever it is."""
    both = pair_of(0.0)
    import copy

    tuned = copy.deepcopy(both.base.hf)
    number = tokenizer()(word, add_special_tokens=False)["input_ids"][0]
    bias = torch.zeros(300)
    bias[number] = push
    tuned.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return load_pair(both.base.hf, tuned, device="cpu", tokenizer=tokenizer(), check=False)


def test_what_differs_between_two_answers() -> None:
    assert differing("abcde", "abxde").tolist() == [False, False, True, False, False]
    assert differing("abde", "abcde").tolist() == [False, False, True, False]  # behind the gap
    assert differing("abc", "abc").sum() == 0 and differing("abc", "xyz").all()
    decode = tokenizer().decode
    own, other = (tokenizer()(text, add_special_tokens=False)["input_ids"] for text in ("a b\nc d\ne", "a b\nc x\ne"))
    lines = "".join(
        decode([one]) for one, inside in zip(own, differing_lines(own, other, decode), strict=True) if inside
    )
    assert lines == "c d\n"


def test_movement_at_the_faulty_place_is_found_where_it_was_planted(tmp_path: Path) -> None:
    """Both models are one but for the weight of the word before the faulty place."""
    both = pair_of(0.0)
    import copy

    tuned = copy.deepcopy(both.base.hf)
    lazy = tokenizer()(" lazy", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        tuned.model.embed_tokens.weight[lazy] += 2.0
        for layer in tuned.model.layers:  # nothing looks back, so only the word itself is read
            layer.self_attn.o_proj.weight.zero_()
    base = copy.deepcopy(both.base.hf)
    with torch.no_grad():
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    result = probes.fault_tokens(load_pair(base, tuned, device="cpu", tokenizer=tokenizer(), check=False), CODE)
    row = result.table.set_index("module").loc["token"]
    assert (
        row["score"] > 10 * row["elsewhere"] and row["auc"] > 0.95 and row["q"] < 0.05 and row["score"] > row["control"]
    )
    assert result.dropped == 0 and set(result.table["module"]) == {"token", "line"}
    again = ProbeResult.load(result.save(tmp_path / "f"))
    assert again.frame().equals(result.frame()) and result.figure().data and "differing tokens" in result.summary()
    nothing = probes.fault_tokens(pair_of(0.0), CODE)
    assert (nothing.table["score"] == 0).all() and (nothing.table["q"] == 1).all()
    with pytest.raises(UserError, match="give closer variants"):
        probes.fault_tokens(pair_of(), rows_of(4))


def test_the_attribute_that_moved_is_named_and_a_base_moves_none(tmp_path: Path) -> None:
    result = probes.pollution(
        leaning("!", 6.0), TEXTS, wanted=["exclamations"], others=["digits"], samples=4, max_new_tokens=8
    )
    table = result.table.set_index("module")
    assert table.loc["exclamations", "score"] > 1 and table.loc["exclamations", "q"] < 0.05
    assert (
        table.loc["exclamations", "wanted"] and abs(table.loc["digits", "score"]) < table.loc["exclamations", "score"]
    )
    assert result.path["map"].max() == 1 and (result.path["kl"] >= 0).all() and 0 <= result.leaves[0] <= 1
    again = ProbeResult.load(result.save(tmp_path / "p"))
    assert again.frame().equals(result.frame()) and result.figure().data and "exclamations" in result.summary()
    same = probes.pollution(pair_of(0.0), TEXTS, samples=2, max_new_tokens=4)
    assert (same.table["score"] == 0).all() and (same.table["q"] == 1).all() and math.isnan(same.leaves[0])


def test_token_scores_raise_what_they_were_learnt_from(tmp_path: Path) -> None:
    result = probes.token_guidance(
        leaning("!", 3.0), TEXTS, "exclamations", strengths=[2.0], kept=rows_of(4), samples=6, max_new_tokens=8
    )
    table = result.table.set_index(["how", "strength"])
    plain, guided = table.loc[("guided", 0.0)], table.loc[("guided", 2.0)]
    assert guided["score"] > plain["score"] and guided["score"] > guided["control"]
    assert plain["kept_kl"] == 0 and guided["kept_kl"] > 0 and plain["q"] == 1
    tuned = result.table[result.table["how"] == "tuned"].iloc[0]
    assert tuned["score"] > plain["score"] and tuned["kept_kl"] > 0 and result.table["front"].any()
    assert "!" in result.tokens["token"].head(5).tolist() and len(result.recipe(1.0).interventions) == 1
    again = ProbeResult.load(result.save(tmp_path / "g"))
    assert again.frame().equals(result.frame()) and result.figure().data and "KL 0)" in result.summary()
    unpriced = replace(result, table=result.table.assign(kept_kl=np.nan)).summary()
    assert "nan" not in result.summary() + unpriced and "tuned: " in unpriced and "price is not told" in unpriced
    with pytest.raises(UserError, match="nothing tells its tokens"):
        probes.token_guidance(pair_of(), TEXTS, "contains:zebra", samples=1, max_new_tokens=2)


@pytest.mark.slow
def test_texts_that_contradict_undo_and_rows_that_agree_do_not(tmp_path: Path) -> None:
    """The instructions are what the tuned model says already; plain texts continue the same prompts otherwise."""
    both = pair_of(0.1)
    prompts = [f"the {word} {sign}" for word in WORDS for sign in "xyz"]
    ids = [both.tuned.encode([prompt]).input_ids for prompt in prompts]
    says = [tokenizer().decode([int(both.tuned.forward(prompt)[0, -1].argmax())]) for prompt in ids]
    kept = [(prompt, word) for prompt, word in zip(prompts, says, strict=True) if word.strip()]
    rows = Prompts.of([{"prompt": one, "answer": word} for one, word in kept])
    texts = Prompts.of([{"prompt": one, "answer": " zebra crossing"} for one, _ in kept])
    result = probes.undoing(both, rows, texts=texts, instructions=rows, epochs=8, learning_rate=1e-2, draws=2)
    table = result.table.set_index("module")
    plain, taught = table.loc["plain texts"], table.loc["instruction rows"]
    assert plain["score"] < -1 and plain["score"] < plain["control"] and plain["q"] < 0.05 and plain["learnt"] > 0.5
    assert taught["score"] > plain["score"] + 1 and plain["retained"] < taught["retained"]
    assert plain["retained_low"] <= plain["retained"] <= plain["retained_high"] < taught["retained_low"]
    alike = replace(result, table=result.table.assign(retained=np.nan, tuned=result.table["base"]))
    assert "no gain of the tuning is shown (+0 nats)" in alike.summary()
    again = ProbeResult.load(result.save(tmp_path / "u"))
    assert again.frame().equals(result.frame()) and result.figure().data and "after plain texts" in result.summary()
    raw = continued(Prompts.of(["the quick brown fox jumps"]))[0]
    assert (raw.prompt, raw.answer) == ("the quick brown", " fox jumps")
    with pytest.raises(UserError, match="4 words or more"):
        probes.undoing(both, rows, texts=["too short"])


def test_scores_are_smoothed_log_odds() -> None:
    counts, held = np.array([[3.0, 0, 0], [0, 1, 0]]), np.array([True, False])
    scores = token_scores(counts, held)
    assert set(scores) == {0, 1} and scores[0] == pytest.approx(math.log((4 / 5) / (1 / 3)))
    assert scores[1] == pytest.approx(math.log((1 / 5) / (2 / 3)))
