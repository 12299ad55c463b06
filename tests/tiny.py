"""Tiny random models of every tested family, shaped so that a wrong reshape or a wrong head cannot pass unseen.

Norm gains differ from 1, heads * d_head differs from d_model where the family allows it, keys and values are
shared between heads, sequences are longer than the sliding window, and the shared expert's width differs from d_model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 300
_SPECIAL: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    **_SPECIAL,
}
_GQA: dict[str, Any] = {**_BASE, "num_key_value_heads": 2}
_MOE: dict[str, Any] = {**_GQA, "num_experts_per_tok": 2}
_DSV3: dict[str, Any] = {
    **_BASE, "num_key_value_heads": 4, "num_experts_per_tok": 2, "n_routed_experts": 8, "n_shared_experts": 1,
    "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24,
}  # fmt: skip
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_GQA),
    "mistral": lambda: tf.MistralConfig(**_GQA, head_dim=32, sliding_window=16),
    "qwen2": lambda: tf.Qwen2Config(**_GQA),
    "qwen3": lambda: tf.Qwen3Config(**_GQA, head_dim=32),
    "gemma2": lambda: tf.Gemma2Config(**_GQA, **_GEMMA),
    "gemma3": lambda: tf.Gemma3TextConfig(**_GQA, **_GEMMA),
    "gpt2": lambda: tf.GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=256, **_SPECIAL),
    "neox": lambda: tf.GPTNeoXConfig(**_BASE),
    "phi3": lambda: tf.Phi3Config(**_GQA),
    "olmo2": lambda: tf.Olmo2Config(**_GQA),
    "mixtral": lambda: tf.MixtralConfig(**_MOE, num_local_experts=8, head_dim=16),
    "qwen2moe": lambda: tf.Qwen2MoeConfig(
        **_MOE, num_experts=8, moe_intermediate_size=32, shared_expert_intermediate_size=48, decoder_sparse_step=1
    ),
    "qwen3moe": lambda: tf.Qwen3MoeConfig(
        **_MOE, num_experts=8, moe_intermediate_size=32, head_dim=32, norm_topk_prob=True
    ),
    "olmoe": lambda: tf.OlmoeConfig(**_MOE, num_experts=8),
    "dsv3": lambda: tf.DeepseekV3Config(**_DSV3),
    "gptoss": lambda: tf.GptOssConfig(**_MOE, num_local_experts=8, head_dim=16, sliding_window=16),
}
FAMILIES: tuple[str, ...] = tuple(CONFIGS)
MOE_FAMILIES: tuple[str, ...] = ("mixtral", "qwen2moe", "qwen3moe", "olmoe", "dsv3", "gptoss")
DENSE_FAMILIES: tuple[str, ...] = tuple(name for name in FAMILIES if name not in MOE_FAMILIES)


def count_hooks(hf: Any) -> int:
    """All hooks on a model's modules, whoever set them."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in hf.modules())


def tokenizer() -> Any:
    """A byte-level BPE of 300 tokens with pad, bos, eos; it puts ``<bos>`` in front, as Llama's does.

    A copy each time: a template that one test gives it is no other test's.
    """
    return copy.deepcopy(_trained_tokenizer())


@cache
def _trained_tokenizer() -> Any:
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<bos>", "<eos>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A random Hugging Face model of ``family`` in eval mode; ``overrides`` change its config."""
    config = CONFIGS[family]()
    for key, value in overrides.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    return model.to(dtype).eval()


def tuned_copy(model: Any, seed: int = 1, size: float = 0.02) -> Any:
    """A copy of ``model`` whose every matrix moved by a random step of ``size``: stands in for full fine-tuning."""
    tuned = type(model)(model.config)
    tuned.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.ndim >= 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return tuned.to(model.dtype).eval()


def randomize(model: Any, seed: int) -> None:
    """Weights large enough that heads and experts differ, norm gains away from 1, biases away from 0."""
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator) * scale

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            embedding = any(key in name for key in ("embed", "wte", "wpe"))
            if parameter.ndim >= 2:
                parameter.copy_(noise(parameter, 0.5 if embedding else 0.15))
            elif "bias" in name:
                parameter.copy_(noise(parameter, 0.05))
            elif "norm" in name or "ln" in name:
                parameter.add_(noise(parameter, 0.2))


def token_batch(rows: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids [rows, length] without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCAB, (rows, length), generator=generator)
