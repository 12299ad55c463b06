"""Where probability moved: a planted selective change is told from a coarse one; nothing moved is nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import probes
from probes.decoding.movement import _by_bin, _selectivity, moved
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

TEXTS = [f"the {a} fox saw the {b} dog and the {a} cat" for a in ("red", "big", "old") for b in ("sad", "new", "hot")]


def pair_of(size: float) -> ModelPair:
    base = tiny_model("llama")
    tuned = tuned_copy(base, size=size) if size else base
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def test_movement_by_hand() -> None:
    base = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
    tuned = torch.tensor([[0.75, 0.25], [0.0, 1.0]]).log()
    table = moved(base, tuned, torch.tensor([0, 1]))
    assert table["moved"].tolist() == pytest.approx([0.25, 1.0])
    assert table["entropy"].tolist() == pytest.approx([math.log(2), 0.0])
    assert table["base_p"].tolist() == pytest.approx([0.5, 0.0])
    assert table["tuned_p"].tolist() == pytest.approx([0.75, 1.0])


def test_a_word_that_one_model_lacks_has_moved_whole() -> None:
    table = moved(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([2]))
    assert table["moved"][0] == pytest.approx(0.25) and table["tuned_p"][0] == 0.0


def test_a_selective_change_is_told_from_a_coarse_one() -> None:
    import pandas as pd

    generator = np.random.default_rng(0)
    tokens = pd.DataFrame({"prompt": np.repeat(np.arange(12), 40), "bin": np.tile(np.arange(4), 120)})
    tokens = tokens.assign(entropy=tokens["bin"] + 0.5, base_p=0.5, tuned_p=0.5)
    coarse = tokens.assign(moved=generator.uniform(0.2, 0.4, len(tokens)))
    selective = coarse.assign(moved=coarse["moved"] * (tokens["bin"] == 3))
    flat = _selectivity(coarse, np.arange(12), 4, 0)
    assert flat["low"] < 0 < flat["high"] and abs(flat["score"]) < 0.1
    assert _selectivity(selective, np.arange(12), 4, 0)["score"] == 1.0
    table = _by_bin(selective, np.arange(12), 0).set_index("bin")
    assert table["q"][3] < 0.01 and table["low"][3] > table["control"][3]
    assert (_by_bin(coarse, np.arange(12), 0)["q"] > 0.01).all()


def test_both_models_are_read_as_they_are_with_padding() -> None:
    pair = pair_of(0.1)
    rows = Prompts.of(["the fox", *TEXTS])
    found = probes.probability_movement(pair, rows, bins=3, batch_size=4)
    ids = torch.tensor([pair.tuned.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        p, q = (model.inner(ids).logits[0, :-1].softmax(-1) for model in (pair.base, pair.tuned))
    mine = found.tokens[found.tokens["prompt"] == 1]
    np.testing.assert_allclose(mine["moved"], (p - q).abs().sum(-1) / 2, atol=1e-5)
    assert mine["token_id"].tolist() == ids[0, 1:].tolist()
    assert found.table["n"].sum() == len(found.tokens) and len(found.table) == 3
    assert "selectivity" in found.summary() and found.figure().data


def test_a_base_against_itself_moved_nothing() -> None:
    found = probes.probability_movement(pair_of(0), TEXTS)
    assert (found.table["score"] == 0).all() and (found.table["q"] == 1).all()
    assert math.isnan(found.selectivity["score"]) and "nothing moved" in found.summary()


def test_one_bin_and_too_few_tokens_are_refused() -> None:
    pair = pair_of(0.1)
    with pytest.raises(UserError, match="two or more"):
        probes.probability_movement(pair, TEXTS, bins=1)
    with pytest.raises(UserError, match="longer texts"):
        probes.probability_movement(pair, ["the fox"], bins=50)
