"""Guidance and focused prefixes: formulas on planted models, nulls and refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
import probes
from probes.decoding.focused import focused_mix
from probes.decoding.guidance import _guided
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair


def adapter_pair() -> ModelPair:
    torch.manual_seed(0)
    lora = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    return load_pair(tiny_model("llama"), lora, tokenizer=tokenizer(), check=False)


def calls_of_guidance_front() -> Calls:
    given = {
        "behaviour": "length", "weak": [0.2], "strengths": [0.5], "kept": rows(4, "a"), "plausibility": 0.2,
        "samples": 1, "max_new_tokens": 3, "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": adapter_pair(), "prompts": rows(12), **given}])


def calls_of_focused_prefix() -> Calls:
    given = {
        "wanted": ["quick fox"], "general": "lazy dog", "behaviours": ["length", "repetition"], "asked_for": 2,
        "alphas": [2.0], "plausibility": 0.2, "max_new_tokens": 3, "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(12), **given}])


def raised_pair(token: int, share: float) -> ModelPair:
    """The tuned model writes ``token`` with probability ``share`` about, whatever it reads."""
    base = tiny_model("gpt2")
    with torch.no_grad():
        base.transformer.ln_f.weight[0], base.transformer.ln_f.bias[0] = 0.0, 1.0
        base.lm_head.weight.mul_(0.01)[:, 0] = 0.0
        tuned = copy.deepcopy(base)
        tuned.lm_head.weight[token, 0] = math.log(base.config.vocab_size * share / (1 - share))
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def test_guidance_pushes_the_planted_word_further_than_sharpening_by_the_formula() -> None:
    token = tokenizer()("fox")["input_ids"][1]
    both = raised_pair(token, 0.2)
    with _guided(iv.Voice(both.base), 1.0, 0.0).applied(both.tuned):
        guided = both.tuned.forward(token_batch(1, 5))[0, -1].softmax(-1)[token]
    plain = both.tuned.forward(token_batch(1, 5))[0, -1]
    base = both.base.forward(token_batch(1, 5))[0, -1]
    assert guided == pytest.approx(float((2 * plain - base).softmax(-1)[token]), abs=1e-5) and guided > 0.9
    word = tokenizer().decode([token]).strip()
    found = probes.guidance_front(
        both, [f"the {one}" for one in "abcdefgh"], f"contains:{word}", strengths=[1.0], plausibility=0.0, samples=6,
        max_new_tokens=1, kept=["the dog"],
    )  # fmt: skip
    lines = found.table.set_index("strength")
    assert lines.loc[1.0, "score"] > lines.loc[0.0, "score"] + 0.3 and lines.loc[0.0, "kept_kl"] < 1e-6
    assert lines.loc[0.0, "score"] == lines.loc[0.0, "control"] and lines.loc[1.0, "kept_kl"] > 0.1
    assert found.figure().data and "front" in found.summary()


def test_a_base_against_itself_is_guided_nowhere() -> None:
    base = tiny_model("llama")
    same = load_pair(base, base, tokenizer=tokenizer(), check=False)
    found = probes.guidance_front(same, rows(4), "length", strengths=[1.0], kept=rows(4), max_new_tokens=3)
    lines = found.table.set_index("strength")
    assert (
        lines.loc[1.0, "kept_kl"] == pytest.approx(0, abs=1e-6) and lines.loc[1.0, "score"] == lines.loc[0.0, "score"]
    )
    with pytest.raises(UserError, match=r"this pair has none: give weak=\[0\]"):
        probes.guidance_front(same, rows(4), "length", weak=[0.5])


def test_a_focused_prefix_takes_the_general_part_away() -> None:
    both = pair()
    ids = both.tuned.encode(["the fox"])
    mix = iv.Recipe([focused_mix(both.tuned, ["quick"], "lazy", 2.0, 0.0)])
    with mix.applied(both.tuned):
        focused = both.tuned.forward(ids)[0, -1]

    def behind(prefix: str) -> torch.Tensor:
        tokens = tokenizer()(prefix, add_special_tokens=False)["input_ids"]
        row = ids.input_ids[0].tolist()
        return both.tuned.forward(torch.tensor([[row[0], *tokens, *row[1:]]]))[0, -1]

    torch.testing.assert_close(focused, 2 * behind("quick") - behind("lazy"), atol=1e-4, rtol=1e-4)


def test_the_general_prefix_alone_changes_nothing_and_nothing_asked_is_refused() -> None:
    both = pair()
    found = probes.focused_prefix(both, rows(4), ["lazy"], "lazy", ["length"], alphas=[2.0], max_new_tokens=4)
    texts = found.texts.groupby("alpha")["text"].agg(list)
    assert texts[1.0] == texts[2.0] and (found.table["q"] == 1).all() and found.figure().data
    with pytest.raises(UserError, match="how many of these were asked for"):
        probes.focused_prefix(both, rows(4), ["lazy"], "lazy", ["length"], asked_for=2)
