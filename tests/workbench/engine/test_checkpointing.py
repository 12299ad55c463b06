"""Edits under gradient checkpointing: the same gradients, recomputed in the right context."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, VOCAB, tiny_model, token_batch, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel

KINDS = ("resid_pre", "resid_mid", "resid_post", "z", "attn_out", "mlp_out")


def model_of(family: str, reentrant: bool | None) -> AdaptedModel:
    hf = tiny_model(family).train()
    for module in hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if reentrant is not None:
        hf.activation_checkpointing_enable({"use_reentrant": reentrant})
        hf.enable_input_require_grads()
    return AdaptedModel(hf, tokenizer())


def positional(model: AdaptedModel, kinds: tuple[str, ...]) -> tuple[Any, AbstractContextManager[Any]]:
    """One learned number per site, times the position, so that a wrong context gives a wrong gradient."""
    scales = torch.nn.Parameter(torch.zeros(len(kinds)))

    def edit(number: int) -> Any:
        def fn(value: torch.Tensor, ctx: Any) -> torch.Tensor:
            index = ctx.index.view(*ctx.index.shape, *[1] * (value.ndim - 2))
            return value * (1 + scales[number] * index)

        return fn

    hooks = [SiteHook(Site(kind, 1), edit(i), edit=True) for i, kind in enumerate(kinds)]
    return scales, model.hooked(hooks)


def loss(model: AdaptedModel, ids: torch.Tensor) -> torch.Tensor:
    return model.hf(input_ids=ids, labels=ids, use_cache=False).loss


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2", "qwen3moe"])
def test_gradients_equal_those_without_checkpointing(family: str, reentrant: bool) -> None:
    ids = token_batch(length=12)
    found = []
    for setting in (None, reentrant):
        model = model_of(family, setting)
        scales, context = positional(model, KINDS)
        with context:
            loss(model, ids).backward()
        assert model.n_hooks == 0
        found.append(scales.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert bool((found[0] != 0).all())


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_forwards_before_one_backward(reentrant: bool) -> None:
    """DPO's shape: two batches of other lengths and paddings, one loss."""
    short, long = token_batch(length=7, seed=1), token_batch(rows=3, length=15, seed=2)
    found = []
    for setting in (None, reentrant):
        model = model_of("llama", setting)
        scales, context = positional(model, ("z", "attn_out", "mlp_out"))
        with context:
            (loss(model, short) - 0.5 * loss(model, long)).backward()
        found.append(scales.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_the_checkpoint_functions_come_back() -> None:
    model = model_of("llama", False)
    before = {name: module.__dict__.get("_gradient_checkpointing_func") for name, module in model.hf.named_modules()}
    with pytest.raises(KeyboardInterrupt), positional(model, ("z",))[1]:
        loss(model, torch.randint(4, VOCAB, (1, 5)))
        raise KeyboardInterrupt
    after = {name: module.__dict__.get("_gradient_checkpointing_func") for name, module in model.hf.named_modules()}
    assert after == before


@pytest.mark.parametrize("family", FAMILIES)
def test_resid_mid_is_the_same_value_for_readers_and_edits(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer())
    if "blocks.1.hook_resid_mid" not in model.sites():
        pytest.skip(f"{family} adds attention and MLP in parallel")
    seen: list[torch.Tensor] = []
    hooks = [
        SiteHook(Site("resid_mid", 1), lambda value, ctx: seen.append(value), edit=True),
        SiteHook(Site("resid_mid", 1), lambda value, ctx: seen.append(value)),
    ]
    with model.hooked(hooks):
        model.forward(token_batch())
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-6)
