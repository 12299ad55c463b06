"""The models that recording is timed on, and prompts of exactly 128 tokens for them."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair

BATCH, LENGTH = 16, 128


def llama(
    *, layers: int = 8, width: int = 512, vocab: int = 1024, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> AdaptedModel:
    """A random Llama. The vocabulary is small, so that skipping the vocabulary projection hides nothing."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, vocab_size=vocab,
        num_key_value_heads=width // 64, intermediate_size=width * 8 // 3 // 32 * 32, max_position_embeddings=512,
    )  # fmt: skip
    return AdaptedModel(tf.LlamaForCausalLM(config).eval().to(device, dtype), words(vocab), name="llama")


def stories(folder: Path, device: str = "cpu") -> AdaptedModel:
    """The pretrained stories260K, with words for tokens: which tokens they are costs nothing."""
    hf = tf.AutoModelForCausalLM.from_pretrained(folder).eval().to(device)
    return AdaptedModel(hf, words(hf.config.vocab_size), name="stories260K")


def pair_of(model: AdaptedModel) -> ModelPair:
    """``model`` beside a copy whose matrices moved a little."""
    tuned = copy.deepcopy(model.hf)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return load_pair(model.hf, tuned, tokenizer=model.tokenizer)


def words(vocab: int) -> Any:
    """A tokenizer of ``vocab`` words w3, w4, …, so that the length of a prompt can be chosen."""
    known = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, vocab)}}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def prompts_for(model: AdaptedModel, count: int = BATCH, length: int = LENGTH) -> list[str]:
    """``count`` prompts of ``length`` random words."""
    dice = random.Random(0)
    return [" ".join(f"w{dice.randrange(4, model.vocab_size)}" for _ in range(length)) for _ in range(count)]
