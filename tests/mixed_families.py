"""Tiny random models whose layers differ in kind, or whose parts no table names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from tests.tiny import randomize

_WORDS: dict[str, Any] = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHAPE: dict[str, Any] = {
    **_WORDS, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 256,
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "head_dim": 32,
}  # fmt: skip
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16,
}  # fmt: skip
_MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "jamba": {
        **_SHAPE, "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 8,
    },
    "qwen3_next": {
        **_SHAPE, **_DELTA, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3_5_text": {**_SHAPE, **_DELTA},
    "lfm2": {**_SHAPE, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "mamba2": {
        **_WORDS, "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16, "state_size": 16,
        "n_groups": 1, "chunk_size": 16,
    },
    "falcon_h1": {**_SHAPE, **_MAMBA, "head_dim": 16, "mamba_d_ssm": 128},
    "llama4_text": {
        **_SHAPE, "head_dim": 16, "intermediate_size_mlp": 128, "num_local_experts": 4, "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2, "no_rope_layers": [1, 1, 1, 0], "attention_chunk_size": 16,
    },
    "minimax": {
        **_SHAPE, **_MOE, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 16,
    },
    "bamba": {**_SHAPE, **_MAMBA, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {
        **_SHAPE, **_MOE, **_MAMBA, "shared_intermediate_size": 48, "layer_types": ["mamba", "attention"] * 2,
    },
    "nemotron_h": {
        **_SHAPE, "head_dim": 16, "layers_block_type": ["mamba", "attention", "mamba", "moe"], "mamba_num_heads": 8,
        "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 16, "chunk_size": 16,
    },
}  # fmt: skip


def mixed_model(kind: str) -> Any:
    """A random model of this ``model_type``."""
    make: Callable[..., Any] = tf.AutoConfig.for_model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(make(kind, **CONFIGS[kind]))
    randomize(hf, 0)
    return hf.eval()
