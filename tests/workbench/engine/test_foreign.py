"""Families outside our table, found through TransformerLens's adapters: exact, checked, and nothing made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from tests.tiny import randomize, tiny_model, token_batch, tokenizer
from workbench.engine.families import FAMILIES
from workbench.engine.hub import Hub, SiteHook
from workbench.engine.selfcheck import self_check
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import pad_left

IDS = token_batch()
_SMALL: dict[str, Any] = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE: dict[str, Any] = {
    **_SMALL, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 256,
}  # fmt: skip
_GQA: dict[str, Any] = {**_BASE, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "opt": lambda: tf.OPTConfig(
        **_SMALL, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, ffn_dim=96, max_position_embeddings=256,
        word_embed_proj_dim=64,
    ),
    "gptj": lambda: tf.GPTJConfig(**_SMALL, n_embd=64, n_layer=3, n_head=4, n_positions=256, rotary_dim=8),
    "stablelm": lambda: tf.StableLmConfig(**_GQA),
    "starcoder2": lambda: tf.Starcoder2Config(**_GQA, sliding_window=None),
    "smollm3": lambda: tf.SmolLM3Config(**_GQA),
    "falcon": lambda: tf.FalconConfig(
        **_SMALL, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, new_decoder_architecture=False,
    ),
    "granite": lambda: tf.GraniteConfig(**_GQA, residual_multiplier=0.5),
    "bloom": lambda: tf.BloomConfig(**_SMALL, hidden_size=64, n_layer=3, n_head=4),
}  # fmt: skip


WITHHELD = {"granite", "falcon", "bloom"}
"""Their blocks scale a branch, add to it in place, or return it with the residual stream added: the additive sites
are not offered, everything else is."""


def foreign_model(family: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(CONFIGS[family]())
    randomize(hf, 0)
    return hf.eval()


def bare(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(IDS).logits


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> AdaptedModel:
    return AdaptedModel(foreign_model(request.param), tokenizer(), name=request.param)


def values_of(model: AdaptedModel) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    names = [name for name in model.sites() if "pattern" not in name]

    def keep(name: str) -> SiteHook:
        return SiteHook(Site.parse(name), lambda value, _ctx: found.__setitem__(name, value))

    with model.hooked([keep(name) for name in names]):
        assert torch.equal(model.forward(IDS), bare(model.hf))
    return found


def test_logits_are_bit_equal_and_the_self_check_passes(model: AdaptedModel) -> None:
    assert model.hf.config.model_type not in FAMILIES
    want = bare(model.hf)
    self_check(model.hub)
    found = values_of(model)
    assert torch.equal(bare(model.hf), want) and model.n_hooks == 0
    assert found["blocks.1.attn.hook_z"].shape == (2, 24, 4, 16)
    assert torch.equal(found["blocks.1.hook_resid_pre"], found["blocks.0.hook_resid_post"])


def test_sublayers_that_are_offered_add_up(model: AdaptedModel) -> None:
    self_check(model.hub)
    found = values_of(model)
    offered = "blocks.1.hook_attn_out" in found
    assert offered == (model.name not in WITHHELD)
    if offered:
        total = sum(found[f"blocks.1.hook_{part}"] for part in ("resid_pre", "attn_out", "mlp_out"))
        torch.testing.assert_close(total, found["blocks.1.hook_resid_post"])


def test_an_edit_of_a_head_is_an_edit_of_its_write(model: AdaptedModel) -> None:
    """Zeroing head 2 at layer 1 equals zeroing its columns of the output projection."""

    def zero(value: torch.Tensor, _ctx: Any) -> torch.Tensor:
        changed = value.clone()
        changed[:, :, 2] = 0
        return changed

    with model.hooked([SiteHook(Site("z", 1), zero, edit=True)]):
        got = model.forward(IDS)
    weight = model.hub.module(Site("z", 1)).weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 32:48] = 0
        want = bare(model.hf)
        weight.copy_(before)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, bare(model.hf))


def test_a_padded_batch_equals_single_prompts_and_generation_is_followed(model: AdaptedModel) -> None:
    rows = [IDS[0, :9].tolist(), IDS[1, :4].tolist()]
    batch, got = pad_left(rows, 0), []
    keep = SiteHook(Site("z", 1), lambda value, _ctx: got.append(value))
    with model.hooked([keep]):
        together = model.forward(batch, logits="last")
        alone = [model.forward(torch.tensor([row]), logits="last") for row in rows]
    assert together is not None
    for row in range(2):
        torch.testing.assert_close(together[row], alone[row][0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(got[0][row, -1], got[1 + row][0, -1], atol=2e-5, rtol=1e-4)
    starts: list[int] = []
    with model.hooked([SiteHook(Site("resid_post", 2), lambda _v, ctx: starts.append(ctx.start))]):
        model.generate_ids(batch, max_new_tokens=3, min_new_tokens=3)
    assert starts == [0, 9, 10]


def test_scaled_branches_are_not_passed_off_as_what_a_sublayer_adds() -> None:
    model = AdaptedModel(foreign_model("granite"), tokenizer())
    before = set(model.hub.sites())
    self_check(model.hub)
    gone = {name.split(".", 2)[2] for name in before - set(model.hub.sites())}
    assert gone == {"hook_attn_out", "hook_mlp_out", "hook_resid_mid"}
    hook = SiteHook(Site("attn_out", 0), lambda _value, _ctx: None)
    with pytest.raises(UserError, match="could not be proved at load: at layer 0 resid_pre"), model.hooked([hook]):
        pass
    self_check(model.hub)  # as a second load of the same object does


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "q taken for v": ({"value": "self_attn.q_proj"}, "v", "pattern times values is not z"),
    "the MLP's projection taken for o_proj": ({"output": "mlp.down_proj"}, "z", "writes do not sum|z has shape"),
    "the norm taken for the attention output": ({"attn_out": "input_layernorm"}, "attn_out", "is not resid_post"),
    "the down projection taken for the MLP": ({"mlp_out": "mlp.up_proj"}, "mlp_out", "resid_post|size"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_a_wrong_map_names_is_withheld_and_the_model_works(mistake: str) -> None:
    changes, kind, says = WRONG[mistake]
    hf = tiny_model("llama", num_key_value_heads=4, hidden_size=96)
    self_check(Hub(hf))
    hub = Hub(hf)
    hub.family = replace(hub.family, **changes)
    self_check(hub)
    for layer in range(3):
        with pytest.raises(NotSupported, match=says):
            hub.module(Site(kind, layer))
        assert f"blocks.{layer}.hook_resid_post" in hub.sites()
    assert hub.n_hooks == 0


def test_a_site_is_withheld_in_the_layer_where_it_cannot_be_proved() -> None:
    hf = tiny_model("llama")
    hf.model.layers[1].self_attn.register_forward_hook(lambda _m, _a, out: (out[0] * 0.5, *out[1:]))
    hub = Hub(hf)
    self_check(hub)
    with pytest.raises(NotSupported, match=r"at layer 1 resid_pre \+ attn_out \+ mlp_out is not resid_post"):
        hub.module(Site("attn_out", 1))
    offered = {name for name in hub.sites() if "attn_out" in name}
    assert offered == {"blocks.0.hook_attn_out", "blocks.2.hook_attn_out"}
    assert hub.withheld.by_kind().keys() == {"attn_out", "mlp_out", "resid_mid"}


def test_an_architecture_that_nobody_knows_resolves_by_its_modules_or_is_refused() -> None:
    class Unheard(tf.LlamaForCausalLM):
        pass

    hf = Unheard(tiny_model("llama").config)
    hf.config.model_type = "unheard_of"
    hub = Hub(hf)
    self_check(hub)
    assert hub.withheld.by_kind() == {} and "blocks.1.attn.hook_z" in hub.sites()
    del hf.model.layers
    with pytest.raises(NotSupported, match="keeps its layers in no list"):
        Hub(hf)
