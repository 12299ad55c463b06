"""A head that changed is found in families that the engine resolves itself, loaded or read as files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import probes
import workbench as wb
from tests.tiny import tokenizer

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "opt": (tf.OPTConfig, {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    "phi": (tf.PhiConfig, {**SIZES, "intermediate_size": 64}),
    "gptj": (tf.GPTJConfig, {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64}),
    "bloom": (tf.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": (tf.FalconConfig, SIZES),
    "stablelm": (tf.StableLmConfig, {**SIZES, "num_key_value_heads": 4, "intermediate_size": 64}),
}
OUTPUTS = ("self_attn.out_proj", "self_attn.dense", "attn.out_proj", "self_attention.dense", "self_attn.o_proj")


def pair_of(kind: str) -> tuple[Any, Any]:
    """Two models that differ in the columns of head 1 of layer 1 alone."""
    make, sizes = CONFIGS[kind]
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    base = tf.AutoModelForCausalLM.from_config(make(vocab_size=len(tokenizer()), **ids, **sizes))
    tuned = copy.deepcopy(base)
    (name,) = [name for name, _ in tuned.named_modules() if name.endswith(OUTPUTS) and ".1." in name]
    with torch.no_grad():
        tuned.get_submodule(name).weight[:, 8:16] += torch.randn(32, 8)
    return base, tuned


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("read", ["loaded", "folders"])
def test_the_head_that_changed_is_found(kind: str, read: str, tmp_path: Path) -> None:
    base, tuned = pair_of(kind)
    if read == "folders":
        base.save_pretrained(tmp_path / "base")
        tuned.save_pretrained(tmp_path / "tuned")
        delta = probes.weight_delta(tmp_path / "base", tmp_path / "tuned")
    else:
        delta = probes.weight_delta(wb.load_pair(base, tuned, tokenizer=tokenizer(), check=False))
    heads = delta.frame("head")
    assert len(heads) == 8 and (heads["score"][1:] == 0).all()
    first = heads.iloc[0]
    assert (first["layer"], first["head"]) == (1, 1) and first["score"] > 1 and first["q"] < 0.05


def test_heads_of_a_fused_attention_are_those_of_its_output_projection() -> None:
    """MPT's config says its heads under another name, and its queries, keys and values are one fused module."""
    config = tf.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4)
    base = tf.AutoModelForCausalLM.from_config(config)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.transformer.blocks[1].attn.out_proj.weight += 1
    delta = probes.weight_delta(base, tuned)
    heads = delta.frame("head")
    assert set(heads[heads["score"] > 0]["layer"]) == {1} and (heads[heads["layer"] == 1]["score"] > 0).sum() == 4
