"""Our sites hold what TransformerLens's bridge caches under the same names, on the same weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, tiny_model, token_batch, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel

KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern")
DIFFERENT = {
    ("dsv3", "z"): "the bridge takes a wrong head width where v_head_dim differs from qk_rope_head_dim",
    ("dsv3", "q"): "the bridge names another tensor of multi-head latent attention",
}
TOLERANCE = 5e-6
"""Absolute; the bridge runs eager attention and splits GPT-2's fused projection."""


def ours(model: AdaptedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    got: dict[str, torch.Tensor] = {}
    sites = [site for name in model.sites() if "expert" not in name and (site := Site.parse(name)).kind in KINDS]

    def keep(site: Site) -> SiteHook:
        return SiteHook(site, lambda value, _ctx: got.__setitem__(site.name, value))

    with model.hooked([keep(site) for site in sites]):
        model.forward(ids)
    return got


def bridged(model: AdaptedModel) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.to_transformer_bridge()


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_values_equal_the_bridge_cache(family: str) -> None:
    model, ids = AdaptedModel(tiny_model(family, attn_implementation="eager"), tokenizer(), name=family), token_batch()
    model.hf.set_attn_implementation("eager")
    before = model.forward(ids)
    got = ours(model, ids)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logits, cache = bridged(model).run_with_cache(ids)
    torch.testing.assert_close(logits, before, atol=2e-5, rtol=1e-5)
    compared = 0
    for name, value in got.items():
        if name not in cache or (family, Site.parse(name).kind) in DIFFERENT:
            continue
        theirs = cache[name]
        scale = max(1.0, float(value.abs().max()))
        assert float((theirs.reshape(value.shape) - value).abs().max()) <= TOLERANCE * scale, name
        compared += 1
    assert compared >= (5 if family == "dsv3" else 8) * model.n_layers - model.n_layers
    assert torch.equal(model.forward(ids), before)  # the bridge rewired its own copy, not this model


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3moe"])
def test_recorded_values_equal_an_nnsight_trace(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nnsight  # noqa: F401
    model, ids = AdaptedModel(tiny_model(family), tokenizer(), name=family), token_batch()
    got = ours_without_pattern(model, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = model.to_nnsight()
        layers = traced.transformer.h if family == "gpt2" else traced.model.layers
        output = "attn.c_proj" if family == "gpt2" else "self_attn.o_proj"
        with torch.no_grad(), traced.trace(ids):
            block = layers[1]
            z = block.get(output).input.save() if hasattr(block, "get") else None
            post = block.output.save()
            logits = traced.output.logits.save()
    assert torch.equal(post if torch.is_tensor(post) else post[0], got["blocks.1.hook_resid_post"])
    if z is not None:
        assert torch.equal(z.view_as(got["blocks.1.attn.hook_z"]), got["blocks.1.attn.hook_z"])
    assert torch.equal(logits, model.forward(ids))


def ours_without_pattern(model: AdaptedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    got: dict[str, torch.Tensor] = {}

    def keep(site: Site) -> SiteHook:
        return SiteHook(site, lambda value, _ctx: got.__setitem__(site.name, value))

    with model.hooked([keep(Site("z", 1)), keep(Site("resid_post", 1))]):
        model.forward(ids)
    return got
