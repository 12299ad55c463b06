"""Where each family of models keeps its parts: our small table, exact and without heavy imports.

A family outside the table resolves through TransformerLens's architecture adapters
(:mod:`workbench.engine.foreign`). The load-time self-check guards both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

MIXERS = ("linear_attn", "mamba", "conv", "mixer", "temporal_block", "mamba_decoder.mamba")
"""Where a layer keeps what mixes tokens in place of attention, or beside it: relative to the layer."""


@dataclass(frozen=True)
class Family:
    """Paths of one family. All but ``layers`` are relative to a decoder layer; None: the family has no such site."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    output: str = "self_attn.o_proj"
    """The attention output projection; its input is z."""
    attention_in: str | None = "input_layernorm"
    """The first module that takes the residual stream inside a layer."""
    query: str | None = "self_attn.q_proj"
    key: str | None = "self_attn.k_proj"
    value: str | None = "self_attn.v_proj"
    fused: str = "separate"
    """How q, k, v are laid out: separate, blocks ([q | k | v]) or per_head ([head, (q, k, v)])."""
    attn_out: str = "self_attn.o_proj"
    resid_mid: str | None = "post_attention_layernorm"
    """The module whose input is the residual stream between attention and MLP; None for parallel blocks."""
    mlp: str = "mlp"
    mlp_out: str = "mlp"
    mlp_post: str | None = "mlp.down_proj"


LLAMA = Family()
GEMMA = replace(
    LLAMA,
    attn_out="post_attention_layernorm",
    resid_mid="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
)
OLMO2 = replace(GEMMA, resid_mid="mlp", attention_in="self_attn")
PHI3 = replace(
    LLAMA,
    query="self_attn.qkv_proj",
    key="self_attn.qkv_proj",
    value="self_attn.qkv_proj",
    fused="blocks",
)
GPT2 = Family(
    layers="transformer.h",
    attention="attn",
    output="attn.c_proj",
    attention_in="ln_1",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    fused="blocks",
    attn_out="attn.c_proj",
    resid_mid="ln_2",
    mlp_post="mlp.c_proj",
)
NEOX = Family(
    layers="gpt_neox.layers",
    attention="attention",
    output="attention.dense",
    query="attention.query_key_value",
    key="attention.query_key_value",
    value="attention.query_key_value",
    fused="per_head",
    attn_out="attention.dense",
    resid_mid=None,
    mlp_post="mlp.dense_4h_to_h",
)
MLA = replace(LLAMA, query="self_attn.q_b_proj", key=None, value=None)
"""Multi-head latent attention caches a compressed key/value, so k and v of the current tokens have no site."""

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "phi3": PHI3,
    "olmo2": OLMO2,
    "mixtral": LLAMA,
    "qwen2_moe": LLAMA,
    "qwen3_moe": LLAMA,
    "olmoe": LLAMA,
    "deepseek_v3": MLA,
    "gpt_oss": LLAMA,
}
"""model_type -> where its parts are; every entry has a test on a tiny random model."""


def submodule(root: nn.Module, path: str) -> Any:
    """The module at a dotted path, or None. Works through PEFT layers, which pass attributes on."""
    module: Any = root
    for part in path.split("."):
        children = module.__dict__.get("_modules", {})  # several times faster than the attribute
        module = children[part] if part in children else getattr(module, part, None)
        if module is None:
            return None
    return module
