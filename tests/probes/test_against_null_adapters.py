"""Null adapters: of the same norms, gone without a trace; a planted adapter stands out among them, a random one not."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch

import probes
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.errors import NotSupported, UserError
from workbench.models.null_adapters import null_adapter
from workbench.models.pair import ModelPair, load_pair
from workbench.models.weight_changes import adapted_modules, effective_delta, factors

TEXTS = ["the quick brown fox", "over the lazy dog", "jumps over the fox", "the dog and the fox", "quick lazy dog"]


def lora_pair(seed: int = 0, planted: bool = False, **more: Any) -> ModelPair:
    """A small random adapter; planted: one that reads the mean stream and writes along the unembedding of one token."""
    settings = {"r": 2, "target_modules": ["down_proj", "o_proj"], "init_lora_weights": False, **more}
    torch.manual_seed(seed)
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**settings)).eval()
    pair = load_pair(model.get_base_model(), model, tokenizer=tokenizer(), check=False)
    if planted:
        _plant(model)
    return pair


def _plant(model: Any) -> None:
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, args, _o, name=name: seen.__setitem__(name, args[0].mean((0, 1))))
        for name, module in model.named_modules()
        if name.endswith(("down_proj", "o_proj"))
    ]
    with torch.no_grad(), model.disable_adapter():
        model(token_batch(4))
    for hook in hooks:
        hook.remove()
    token = model.get_output_embeddings().weight[9].detach()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name in seen:
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                down.copy_(seen[name].expand_as(down) / seen[name].norm())
                up.copy_(token[:, None].expand_as(up) / token.norm())


def norms(model: Any) -> list[float]:
    return [float(effective_delta(model, name).norm()) for name in adapted_modules(model)]


@pytest.mark.parametrize("kind", ["random", "shuffled"])
def test_a_null_has_the_norms_and_leaves_no_trace(kind: Any) -> None:
    pair = lora_pair()
    ids = token_batch()
    before, logits, identity = norms(pair.adapter), pair.tuned.forward(ids), pair.tuned.identity
    plain = pair.base.forward(ids)
    own = factors(pair.adapter, adapted_modules(pair.adapter)[0]).A.clone()  # type: ignore[union-attr]
    with null_adapter(pair, 3, kind) as stand_in:
        assert norms(pair.adapter) == pytest.approx(before, rel=1e-5)
        assert not torch.equal(factors(pair.adapter, adapted_modules(pair.adapter)[0]).A, own)  # type: ignore[union-attr]
        assert not torch.equal(stand_in.tuned.forward(ids), logits) and stand_in.tuned.identity != identity
        assert torch.equal(stand_in.base.forward(ids), plain)
    assert torch.equal(pair.tuned.forward(ids), logits) and pair.tuned.identity == identity
    with pytest.raises(RuntimeError, match="stop"), null_adapter(pair, 3, kind):
        raise RuntimeError("stop")
    assert torch.equal(pair.tuned.forward(ids), logits)


def test_an_adapter_of_nothing_has_nulls_of_nothing() -> None:
    pair = lora_pair(init_lora_weights=True)  # B = 0
    found = probes.against_nulls(probes.logit_lens, pair, TEXTS, nulls="random")
    assert found.best == 0 and found.p_best == 1 and (found.table["q"] == 1).all()


def test_a_planted_adapter_stands_out() -> None:
    pair = lora_pair(planted=True)
    found = probes.against_nulls(probes.logit_lens, pair, TEXTS, nulls=39)
    assert found.p_best == pytest.approx(1 / 40) and found.table["q"].min() < 0.05
    assert (found.table["control"] <= found.table["null_high"]).all() and found.best > found.nulls["best"].max()
    assert "39 random adapters" in found.summary() and found.figure().data
    own = probes.logit_lens(pair, TEXTS).frame()
    assert np.array_equal(found.frame()["score"], own["score"])
    assert "logit_lens" in found.provenance.settings["probe"] and found.provenance.settings["nulls"] == 39


@pytest.mark.slow
def test_a_random_adapter_stands_at_a_random_place() -> None:
    places = [
        probes.against_nulls(probes.logit_lens, _redrawn(seed), TEXTS[:3], null_seed=100).p_best for seed in range(8)
    ]
    assert 0.2 < np.mean(places) < 0.8


def _redrawn(seed: int) -> ModelPair:
    """A pair whose adapter is itself a draw of the null."""
    pair = lora_pair()
    with null_adapter(pair, seed):
        kept = [tuple(factor.clone() for factor in factors(pair.adapter, name)[:2]) for name in _names(pair)]  # type: ignore[index]
    with torch.no_grad():
        for name, (down, up) in zip(_names(pair), kept, strict=True):
            held = factors(pair.adapter, name)
            assert held is not None
            held.A.copy_(down)
            held.B.copy_(up)
    return pair


def _names(pair: ModelPair) -> list[str]:
    return adapted_modules(pair.adapter)


def test_what_has_no_null_is_refused() -> None:
    base = tiny_model("llama")
    whole = load_pair(base, tuned_copy(base), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="two whole models"):
        probes.against_nulls(probes.logit_lens, whole, TEXTS)
    with pytest.raises(UserError, match="19 or more"):
        probes.against_nulls(probes.logit_lens, lora_pair(), TEXTS, nulls=5)
    with pytest.raises(NotSupported, match="no plain LoRA"):
        probes.against_nulls(probes.logit_lens, lora_pair(use_dora=True), TEXTS)
    with pytest.raises(NotSupported, match="modules_to_save"):
        probes.against_nulls(probes.logit_lens, lora_pair(modules_to_save=["lm_head"]), TEXTS)
