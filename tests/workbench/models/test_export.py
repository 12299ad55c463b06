"""The way out to other toolboxes: on copies where they rewire, adapters merged or left out, the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch

from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.models.export import plain_copy
from workbench.models.pair import ModelPair, load_pair

IDS = token_batch()
quiet = pytest.mark.filterwarnings("ignore")  # both libraries warn of their own dependencies


@pytest.fixture
def pair() -> ModelPair:
    torch.manual_seed(3)
    base = tiny_model("llama", attn_implementation="eager")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config).eval()
    base.set_attn_implementation("eager")  # what the bridge runs
    return load_pair(base, model, tokenizer=tokenizer())


def read(model: AdaptedModel) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    sites = model.expand(["z", "resid_post"])
    with model.hooked([SiteHook(s, lambda v, _c, s=s: found.__setitem__(s.name, v)) for s in sites]):
        model.forward(IDS)
    return found


def state(hf: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in hf.state_dict().items()}


@quiet
@pytest.mark.parametrize("role", ["base", "tuned"])
def test_the_bridge_is_the_view_on_a_copy_and_leaves_the_model_alone(pair: ModelPair, role: str) -> None:
    model = pair.models[role]
    logits, values = model.forward(IDS), read(model)
    before, names = state(model.hf), [name for name, _ in model.hf.named_modules()]
    bridge = model.to_transformer_bridge()
    with torch.no_grad():
        theirs, cache = bridge.run_with_cache(IDS)
    torch.testing.assert_close(theirs, logits, atol=2e-5, rtol=1e-5)
    for name, value in values.items():
        torch.testing.assert_close(cache[name], value, atol=2e-5, rtol=1e-5)
    assert [name for name, _ in model.hf.named_modules()] == names
    after = model.hf.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model.forward(IDS), logits)
    with torch.no_grad():
        next(bridge.original_model.parameters()).zero_()
    assert torch.equal(model.forward(IDS), logits), "the copy shares no weight"


def test_copies_of_views_hold_no_adapter(pair: ModelPair) -> None:
    bare = tiny_model("llama")
    base, tuned = plain_copy(pair.base), plain_copy(pair.tuned)
    for copy in (base, tuned):
        assert not any("lora" in name for name, _ in copy.named_modules())
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in bare.state_dict().items())
    moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, bare.state_dict()[name])}
    assert moved == {
        f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert not any(layer.merged for layer in pair.adapter.modules() if isinstance(layer, peft.tuners.lora.LoraLayer))


def test_a_steered_model_is_not_bridged(pair: ModelPair) -> None:
    hook = SiteHook(Site("z", 1), lambda value, _ctx: value * 2, edit=True)
    with pair.tuned.hooked([hook]), pytest.raises(NotSupported, match="leave their context before bridging"):
        pair.tuned.to_transformer_bridge()


@quiet
@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_trace_of_nnsight_agrees_also_while_a_hook_of_ours_edits(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer())
    want = model.forward(IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = model.to_nnsight()
    layers = traced.gpt_neox.layers if family == "neox" else traced.model.layers
    values = read(model)

    def trace() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), traced.trace(IDS):
            post = layers[1].output.save()
            logits = traced.output.logits.save()
        return post, logits

    post, logits = trace()
    assert torch.equal(post, values["blocks.1.hook_resid_post"]) and torch.equal(logits, want)
    hook = SiteHook(Site("z", 0), lambda value, _ctx: value * 2, edit=True)
    with model.hooked([hook]):
        steered = model.forward(IDS)
        _, logits = trace()
    assert torch.equal(logits, steered) and not torch.equal(steered, want)
    assert torch.equal(model.forward(IDS), want)


@quiet
def test_nnsight_sees_the_tuned_model_of_an_adapter_pair(pair: ModelPair) -> None:
    want = pair.tuned.forward(IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = pair.tuned.to_nnsight()
    with torch.no_grad(), traced.trace(IDS):
        logits = traced.output.logits.save()
    assert torch.equal(logits, want)
