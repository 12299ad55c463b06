"""GGUF files of tiny Llama and Qwen2 models, as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Stored
from gguf import GGUFWriter, quants

from tests.tiny import tokenizer

_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write_gguf(
    file: Path, model: Any, stored: Stored = Stored.F32, *, template: str | None = CHAT, **fields: Any
) -> Path:
    """``model`` (a Llama, or a Qwen2 with ``architecture="qwen2"``) in ``file``, its matrices as ``stored``; ``fields``
    are written instead of or beside ours."""
    architecture = str(fields.get("architecture", "llama"))
    config, writer = model.config, GGUFWriter(file, architecture)
    _write_fields(writer, config, template)
    for name, value in fields.items():
        if name != "architecture":
            writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if architecture != "qwen2" and (".q_proj." in name or ".k_proj." in name):
            values = _interleaved(values, config.num_attention_heads if ".q_" in name else config.num_key_value_heads)
        kind = stored if values.ndim > 1 else Stored.F32
        data = values if kind is Stored.F32 else quants.quantize(values, kind)
        writer.add_tensor(_renamed(name), data, raw_dtype=None if kind is Stored.F32 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_fields(writer: GGUFWriter, config: Any, template: str | None) -> None:
    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config.vocab_size)
    words = json.loads(tokenizer().backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(words["vocab"].items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and token.endswith(">") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring pairs, transformers the two halves of a head."""
    shape = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape))


def _renamed(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{end}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[part]}.{end}"
