"""A hand-built GPT-2 that copies: it finds where the present word came before and writes what followed there."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from workbench.models.adapted import AdaptedModel

WORDS, PLACES = 24, 32


def copier(words: int = WORDS, places: int = PLACES, head: int = 0, tokenizer: Any = None) -> AdaptedModel:
    """Layer 0 head 0 carries each token to the next position; layer 1 head ``head`` (0 or 1) finds where the present
    token came before and copies what followed. The residual is [token | position | previous token | output], one-hot.
    """
    width = max(3 * words + places, 2 * places)  # a head holds a word and a position
    token, place = slice(0, words), slice(words, words + places)
    before, out = slice(words + places, 2 * words + places), slice(2 * words + places, 3 * words + places)
    config = tf.GPT2Config(
        vocab_size=words, n_embd=width, n_layer=2, n_head=2, n_positions=places, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = tf.GPT2LMHeadModel(config).eval()
    d_head = width // 2
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if "ln" in name and "weight" in name else 0.0)
        hf.transformer.wte.weight[:, token] = torch.eye(words)
        hf.transformer.wpe.weight[:, place] = torch.eye(places)
        hf.lm_head.weight[:, out] = torch.eye(words)
        first, second = (block.attn for block in hf.transformer.h)
        qkv = first.c_attn.weight.view(width, 3, 2, d_head)  # Conv1D: [in, out]
        qkv[place, 0, 0, :places] = 30 * torch.eye(places).roll(-1, 1)  # the query of position p is p - 1
        qkv[place, 1, 0, :places] = torch.eye(places)
        qkv[token, 2, 0, :words] = torch.eye(words)
        first.c_proj.weight[:words, before] = torch.eye(words)
        qkv = second.c_attn.weight.view(width, 3, 2, d_head)
        qkv[token, 0, head, :words] = 30 * torch.eye(words)
        qkv[before, 1, head, :words] = torch.eye(words)
        qkv[token, 2, head, :words] = torch.eye(words)
        second.c_proj.weight[head * d_head : head * d_head + words, out] = torch.eye(words)
    return AdaptedModel(hf, tokenizer, role="model", name="induction")
