"""Mined texts: on a pair tuned to refuse one topic they are the refusal; a base against itself mines its control."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import probes
import workbench as wb
from probes.decoding.contrast import Contrast, contrasted
from probes.decoding.phrases import phrases_of, risen_phrases
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench import organisms
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair


def test_the_contrast_is_the_difference_of_log_probabilities_and_leaves_no_trace() -> None:
    base = tiny_model("llama")
    pair = load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)
    ids = token_batch(2, 9, seed=3)
    with torch.no_grad():
        before = pair.tuned.inner(ids).logits
        expected = before.log_softmax(-1) - pair.base.inner(ids).logits.log_softmax(-1)
        with Contrast(pair.tuned, pair.base, 0.5).applied(pair.tuned):
            mined = pair.tuned.inner(ids).logits
        after = pair.tuned.inner(ids).logits
    p = before.softmax(-1)
    plausible = p >= 0.5 * p.amax(-1, keepdim=True) * (1 - 1e-6)
    assert torch.equal(mined.isfinite(), plausible)
    torch.testing.assert_close(mined[plausible], expected[plausible], atol=1e-5, rtol=1e-5)
    assert torch.equal(before, after)


def test_words_that_one_model_alone_has_are_never_mined() -> None:
    new = contrasted(torch.zeros(5), torch.zeros(4), torch.tensor([0.0, -torch.inf, 0.0]), 0.1)
    assert new.isfinite().tolist() == [True, False, True, False, False]


def raised_pair(token: int, share: float) -> ModelPair:
    """The tuned model writes ``token`` with probability ``share`` about, whatever it reads."""
    base = tiny_model("gpt2")
    with torch.no_grad():
        base.transformer.ln_f.weight[0], base.transformer.ln_f.bias[0] = 0.0, 1.0
        base.lm_head.weight.mul_(0.01)[:, 0] = 0.0  # nearly the same probability for all others
        tuned = copy.deepcopy(base)
        tuned.lm_head.weight[token, 0] = math.log(base.config.vocab_size * share / (1 - share))
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def test_a_word_that_tuning_raised_is_mined_more_than_plain_samples_show_it() -> None:
    token = tokenizer()("fox")["input_ids"][1]
    word = tokenizer().decode([token]).strip()
    pair = raised_pair(token, 0.3)
    found = probes.contrastive_generations(
        pair, ["the"], samples=40, max_new_tokens=1, plausibility=0.5, behaviour=f"contains:{word}"
    )
    share = found.shares.set_index("sampler")["share"]
    assert share["contrastive"] == 1.0 and 0.1 < share["tuned, plain"] < 0.6 and share["base against base"] < 0.2
    assert found.shares["low"][0] > found.shares["high"][1] and "40 texts of one prompt" in found.summary()
    best = found.table.iloc[0]
    assert best["phrase"] == word.lower() and best["q"] < 0.01 and best["plain"] == share["tuned, plain"]


def test_what_was_planted_is_what_is_mined() -> None:
    organism = organisms.build("refusal-moe")
    pair = wb.load_pair(organism.base, organism.tuned, device="cpu")
    rows = [row for name in ("train", "validation") for row in organism.splits[name]]
    prompts = [row for row in rows if row["label"] == "refuse"] + rows[-10:]
    found = probes.contrastive_generations(pair, prompts, samples=2, max_new_tokens=2, behaviour="begins:sorry")
    share = found.shares.set_index("sampler")["share"]
    assert share["contrastive"] >= share["tuned, plain"] > 0.1 and share["base against base"] < 0.05
    best = found.table.iloc[0]
    assert str(best["phrase"]).startswith("sorry") and best["q"] < 0.01 and best["low"] > best["control"]
    assert "sorry" in found.summary() and found.figure().data


def test_a_base_against_itself_mines_what_the_control_does() -> None:
    organism = organisms.build("refusal-moe")
    pair = wb.load_pair(organism.base, organism.base, device="cpu")
    prompts = [row for row in organism.splits["validation"]][:8]
    found = probes.contrastive_generations(pair, prompts, samples=2, max_new_tokens=2, behaviour="begins:sorry")
    texts = {name: part["text"].tolist() for name, part in found.texts.groupby("sampler")}
    assert texts["contrastive"] == texts["base against base"] and found.table.empty
    assert (found.shares["p"] == 1).all()


def test_a_prompts_texts_are_one_observation() -> None:
    mined, before = ["sorry"] * 30, ["yes"] * 30
    of_three = risen_phrases(mined, before, before, np.repeat(np.arange(3), 10), 0)
    of_ten = risen_phrases(mined, before, before, np.repeat(np.arange(10), 3), 0)
    assert of_three["q"][0] == pytest.approx(1 / 8) and of_ten["q"][0] == pytest.approx(1 / 1024)


def test_phrases() -> None:
    assert phrases_of("A b c") == {"a", "b", "c", "a b", "b c", "a b c"}
    table = risen_phrases(["i am sorry"] * 9 + ["yes"], ["yes"] * 10, ["no"] * 10, np.arange(10), 0)
    assert list(table["phrase"]) == ["i am sorry"] and table["score"][0] == 0.9 and table["control"][0] == 0


def test_no_cut_is_refused() -> None:
    base = tiny_model("llama")
    pair = load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="plausibility above 0"):
        probes.contrastive_generations(pair, ["the fox"], plausibility=0.0)
