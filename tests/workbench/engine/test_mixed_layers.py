"""Models whose layers differ in kind: what is offered is exact, what cannot be proved says why, the rest works."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers as tf

import workbench as wb
from tests.mixed_families import CONFIGS, mixed_model
from tests.tiny import token_batch, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.prompts.encode import pad_left

IDS = token_batch()
HEADS = {"jamba": (1, 3), "qwen3_next": (3,), "qwen3_5_text": (3,), "lfm2": (1, 3), "mamba2": (), "minimax": (1, 3),
         "bamba": (1, 3), "granitemoehybrid": (1, 3), "nemotron_h": (1,)}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    hf = mixed_model(request.param)
    return wb.load_pair(hf, mixed_model(request.param), tokenizer=tokenizer())


def _bare(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = hf(IDS).logits
    return logits


def test_it_records_and_leaves_the_logits_as_they_are(pair: Any) -> None:
    want = _bare(pair.base.hf)
    assert torch.equal(pair.base.forward(IDS), want)
    recording = wb.record(pair, ["the quick brown fox", "a dog"], ["resid_post"])
    assert recording is not None
    assert torch.equal(_bare(pair.base.hf), want) and pair.base.n_hooks == 0


def test_heads_are_offered_in_the_layers_that_have_attention(pair: Any) -> None:
    kind = pair.base.hf.config.model_type
    layers = tuple(layer for layer in range(pair.base.n_layers) if f"blocks.{layer}.attn.hook_z" in pair.base.sites())
    assert layers == HEADS.get(kind, tuple(range(pair.base.n_layers)))
    for layer in set(range(pair.base.n_layers)) - set(layers):
        assert f"blocks.{layer}.hook_mixer_out" in pair.base.sites()
        with pytest.raises(NotSupported, match=f"Layer {layer} of this .* has no attention heads"):
            pair.base.expand("z", [layer])


def test_a_withheld_site_says_why(pair: Any) -> None:
    for kind, reason in pair.base.withheld.items():
        site = Site(kind, pair.base.n_layers - 1, 0 if kind == "expert" else None)
        with pytest.raises(UserError) as error:
            pair.base.expand(site)
        what = reason.partition(" (and in ")[0].split(" ", 3)[-1]  # after the layer's number
        assert what in str(error.value)


def test_generation_counts_positions_and_steering_acts(pair: Any) -> None:
    model = pair.base
    batch, starts = pad_left([IDS[0, :9].tolist(), IDS[1, :4].tolist()], 0), []
    with model.hooked([SiteHook(Site("resid_post", 1), lambda _v, ctx: starts.append(ctx.start))]):
        plain = model.generate_ids(batch, max_new_tokens=3, min_new_tokens=3)
    assert starts == [0, 9, 10] and plain is not None
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    before = _bare(model.hf)
    with model.hooked([SiteHook(Site("resid_post", 1), lambda value, _ctx: value + 4 * direction, edit=True)]):
        steered = model.forward(IDS)
    assert not torch.allclose(steered, before) and torch.equal(_bare(model.hf), before)


def test_an_edit_of_a_mixers_output_moves_the_residual_stream_by_it() -> None:
    model = wb.load_pair(mixed_model("jamba"), mixed_model("jamba"), tokenizer=tokenizer()).base
    seen: dict[str, torch.Tensor] = {}
    keep = SiteHook(Site("resid_mid", 0), lambda value, _ctx: seen.__setitem__("mid", value.clone()))
    with model.hooked([keep]):
        model.forward(IDS)
    before = seen["mid"]
    with model.hooked([SiteHook(Site("mixer_out", 0), lambda value, _ctx: value + 1.0, edit=True), keep]):
        model.forward(IDS)
    torch.testing.assert_close(seen["mid"], before + 1.0)


def test_a_residual_stream_of_several_streams_is_withheld() -> None:
    """Gemma3n keeps parallel copies of its stream: [copy, row, pos, d_model]."""
    sizes = {
        "vocab_size": 300, "vocab_size_per_layer_input": 300, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": [96, 96], "altup_num_inputs": 2,
        "hidden_size_per_layer_input": 16, "laurel_rank": 8, "num_kv_shared_layers": 0, "pad_token_id": 0,
        "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0],
    }  # fmt: skip
    hf = tf.AutoModelForCausalLM.from_config(tf.Gemma3nTextConfig(**sizes)).eval()
    model = wb.load_model(hf, tokenizer=tokenizer())
    assert model.forward(IDS) is not None
    with pytest.raises(NotSupported, match=r"the residual stream is no \[row, pos, d_model\].*\[2, 2, 4, 64\]\.$"):
        wb.record(wb.load_pair(hf, hf, tokenizer=tokenizer()), ["the quick brown fox"], ["resid_post"])
    assert "blocks.1.attn.hook_z" in model.sites()
