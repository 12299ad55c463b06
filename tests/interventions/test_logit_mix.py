"""Voices, fusions and rules: known answers of the arithmetic, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
from interventions.logit_arithmetic import matched_amounts
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair


def model(seed: int = 0) -> AdaptedModel:
    return AdaptedModel(tiny_model("llama", seed), tokenizer(), name=f"tiny {seed}")


def tuned(seed: int = 1) -> AdaptedModel:
    return AdaptedModel(tuned_copy(tiny_model("llama"), seed, 0.1), tokenizer(), name=f"tuned {seed}")


def adapter_pair() -> ModelPair:
    torch.manual_seed(0)
    lora = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    return load_pair(tiny_model("llama"), lora, tokenizer=tokenizer(), check=False)


def logits(recipe: iv.Recipe, on: AdaptedModel) -> torch.Tensor:
    with recipe.applied(on):
        found = on.forward(token_batch(2, 9, seed=3))
    assert found is not None
    return found


def test_one_voice_is_that_model_to_the_bit() -> None:
    running, other = model(), tuned()
    assert torch.equal(logits(iv.Recipe([iv.LogitMix({"t": other}, 0.0)]), running), logits(iv.Recipe([]), other))


def test_a_product_of_experts_multiplies_and_constants_cancel() -> None:
    running, other, shifted = model(), tuned(), tuned()
    shifted.inner.register_forward_hook(lambda _m, _a, out: out.__setitem__("logits", out.logits + 3.7))
    both = logits(iv.Recipe([iv.LogitMix({"t": other})]), running).log_softmax(-1)
    by_hand = logits(iv.Recipe([]), running).log_softmax(-1) + logits(iv.Recipe([]), other).log_softmax(-1)
    torch.testing.assert_close(both, by_hand.log_softmax(-1), atol=1e-4, rtol=1e-4)
    again = logits(iv.Recipe([iv.LogitMix({"t": shifted})]), running).log_softmax(-1)
    torch.testing.assert_close(again, both, atol=1e-4, rtol=1e-4)


def test_a_voice_with_its_adapter_turned_down_is_that_adapter() -> None:
    pair = adapter_pair()
    mixed = logits(iv.Recipe([iv.LogitMix({"weak": iv.Voice(pair.tuned, 1.0, adapter_scale=0.3)}, 0.0)]), pair.tuned)
    assert torch.equal(mixed, logits(iv.Recipe([iv.AdapterScale(0.3)]), pair.tuned))
    assert torch.equal(logits(iv.Recipe([]), pair.base), tiny_model("llama")(token_batch(2, 9, seed=3)).logits)


def test_several_rewards_add_up_and_are_a_slider() -> None:
    running, base, a, b = model(3), model(), tuned(1), tuned(2)
    fused = iv.LogitFusion({"a": a, "b": b}, base, {"a": 0.7, "b": 0.3})
    twice = iv.Recipe([iv.LogitShift(a, base, 0.7), iv.LogitShift(b, base, 0.3)])
    torch.testing.assert_close(logits(iv.Recipe([fused]), running), logits(twice, running), atol=1e-4, rtol=1e-4)
    slid = logits(iv.Recipe([fused.with_weights(a=0.0, b=1.0)]), running)
    torch.testing.assert_close(slid, logits(iv.Recipe([iv.LogitShift(b, base)]), running), atol=1e-4, rtol=1e-4)
    shares = logits(iv.Recipe([iv.LogitFusion({"a": a, "b": a, "c": a}, base, dict.fromkeys("abc", 1 / 3))]), running)
    torch.testing.assert_close(shares, logits(iv.Recipe([iv.LogitShift(a, base)]), running), atol=1e-4, rtol=1e-4)


def test_matched_weights_are_one_where_the_large_model_is_the_small_one() -> None:
    own, expert = torch.randn(2, 5, 40), torch.randn(2, 5, 40)
    assert torch.equal(matched_amounts(own, [expert], own), torch.ones(2, 5, 1))
    base = model()
    only = iv.Recipe([iv.LogitFusion({"a": tuned()}, base)])
    assert torch.equal(logits(only, model()), logits(iv.Recipe([]), tuned()))


def test_two_matched_experts_move_as_far_as_theirs_did() -> None:
    generator = torch.Generator().manual_seed(1)
    own, base = (torch.randn(1, 30, 40, generator=generator) for _ in range(2))
    experts = [base + 0.7 * torch.randn(1, 30, 40, generator=generator) for _ in range(2)]
    amounts = matched_amounts(own, experts, base)

    def moved(weights: torch.Tensor) -> torch.Tensor:
        o, b = own.log_softmax(-1), base.log_softmax(-1)
        changes = [expert.log_softmax(-1) - b for expert in experts]
        fused = (o + sum(weights[..., n, None] * change for n, change in enumerate(changes))).log_softmax(-1)
        goals = [((c + b).exp() * c).sum(-1) for c in changes]
        kl = (fused.exp() * (fused - o)).sum(-1)
        return sum((kl - goal).square() for goal in goals).mean()

    assert moved(amounts) < moved(torch.full_like(amounts, 0.5)) and moved(amounts) < moved(torch.ones_like(amounts))


def test_files_hold_models_by_name(tmp_path: Path) -> None:
    running, other = model(), tuned()
    mix = iv.LogitMix({"t": iv.Voice(other, 2.0, prefix="the")}, 0.5, plausibility=0.1, judge="t")
    fusion = iv.LogitFusion({"a": other}, running, {"a": 0.5})
    rules = iv.TokenRules(3.0, 9, {"q": -1.0, 7: 2.0}, -1.0)
    recipe = iv.Recipe([mix, fusion, rules])
    loaded = iv.Recipe.load(recipe.save(tmp_path / "voices.safetensors"))
    assert loaded == recipe
    with pytest.raises(UserError, match="holds no weights"):
        loaded.check(running)
    back, fused, ruled = loaded
    mended = iv.Recipe([back.with_models(t=other), fused.with_models(running, a=other), ruled])
    torch.testing.assert_close(logits(mended, running), logits(recipe, running))
    with pytest.raises(UserError, match="other weights"):
        back.with_models(t=running)


def test_what_cannot_be_mixed_is_a_sentence() -> None:
    running, other = model(), tuned()
    with pytest.raises(UserError, match="Nobody speaks"):
        iv.LogitMix({}, 0.0)
    with pytest.raises(UserError, match="Unknown voice"):
        iv.LogitMix({"t": other}).with_weights(tt=1.0)
    with pytest.raises(UserError, match="no adapter to scale"):
        iv.Recipe([iv.LogitMix({"t": iv.Voice(other, adapter_scale=0.5)})]).check(running)
    with pytest.raises(UserError, match="Unknown expert"):
        iv.LogitFusion({"a": other}, running, {"b": 1.0})
    with pytest.raises(UserError, match="tokens to this model"):
        iv.Recipe([iv.TokenRules(biases={"zebra xylophone": 1.0})]).check(running)


def written(recipe: iv.Recipe, on: AdaptedModel, n: int, **options: object) -> list[int]:
    with recipe.applied(on):
        ids = on.generate_ids(on.encode(["the fox"]), max_new_tokens=n, **options)
    return ids[0, on.encode(["the fox"]).input_ids.shape[1] :].tolist()


def test_rules_end_texts_and_forbid_repetition() -> None:
    running = model()
    plain = written(iv.Recipe([]), running, 30)
    assert 2 not in plain
    ended = written(iv.Recipe([iv.TokenRules(end_ramp=60.0, ramp_tokens=20, biases={2: -30.0})]), running, 30)
    assert ended[-1] == 2 and 5 < len(ended) <= 21
    once = iv.Recipe([iv.TokenRules(repeated=-1000.0)])
    assert len(set(plain)) < len(plain)
    cached = written(once, running, 30)
    assert len(set(cached)) == len(cached) and cached == written(once, running, 30, use_cache=False)
    assert iv.TokenRules.of_the_paper().biases["I"] == -5


def test_rules_that_contradict_are_a_sentence() -> None:
    with pytest.raises(UserError, match="'#7' has two biases, 1 and 2"):
        iv.TokenRules(biases={"#7": 1.0, 7: 2.0})
    (fox,) = tokenizer()(" fox", add_special_tokens=False)["input_ids"]
    with pytest.raises(UserError, match=f"token {fox}, which has another bias already"):
        iv.Recipe([iv.TokenRules(biases={" fox": 1.0, fox: -1.0})]).check(model())
    iv.Recipe([iv.TokenRules(biases={" fox": 1.0, fox: 1.0})]).check(model())
