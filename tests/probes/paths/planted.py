"""A hand-built GPT-2 that completes repeated pairs: a previous-token head feeds an induction head through its keys."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from workbench.models.adapted import AdaptedModel
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts

WORDS = "ant bee cat dog eel fox gnu hen".split()
LENGTH = 8
D = 64
TOKEN, POSITION, BEFORE, OUT = 0, 16, 32, 48
"""Where the residual stream keeps the token, its position, the token before it, and the answer."""


def induction_model(seed: int = 0) -> AdaptedModel:
    """Two layers of two heads; L0H0 looks one token back, L1H0 looks for its own token behind another; the other two
    heads look where they like and write next to nothing."""
    tokenizer = word_tokenizer(WORDS)
    vocab = len(tokenizer)
    config = tf.GPT2Config(
        vocab_size=vocab, n_positions=16, n_embd=D, n_layer=2, n_head=2, n_inner=8,
        tie_word_embeddings=False, attn_implementation="eager", bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    hf = tf.GPT2LMHeadModel(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for norm in (hf.transformer.h[0].ln_1, hf.transformer.h[1].ln_1, hf.transformer.ln_f):
            norm.weight.fill_(1.0)
        for block in hf.transformer.h:
            block.ln_2.weight.fill_(1.0)
        for token in range(vocab):
            hf.transformer.wte.weight[token, TOKEN + token] = 1.0
            hf.lm_head.weight[token, OUT + token] = 1.0
        for place in range(16):
            hf.transformer.wpe.weight[place, POSITION + place] = 1.0
        first, second = hf.transformer.h[0].attn, hf.transformer.h[1].attn
        for place in range(15):
            _write(first, "q", POSITION + place + 1, place, 6.0)
            _write(first, "k", POSITION + place, place, 6.0)
        for token in range(vocab):
            _write(first, "v", TOKEN + token, token, 1.0)
            first.c_proj.weight[token, BEFORE + token] = 0.2
            _write(second, "q", TOKEN + token, token, 6.0)
            _write(second, "k", BEFORE + token, token, 6.0)
            _write(second, "v", TOKEN + token, token, 1.0)
            second.c_proj.weight[token, OUT + token] = 0.5
        for attention in (first, second):  # H1 of both layers: a weak random writer
            noise = torch.randn(D, 32, generator=generator, dtype=torch.float64) * 0.05
            attention.c_attn.weight[:, 2 * D + 32 : 2 * D + 64] = noise
            attention.c_proj.weight[32:64] = noise.T * 0.01
    return AdaptedModel(hf, tokenizer, name="induction")


def _write(attention: Any, part: str, row: int, column: int, value: float) -> None:
    """One entry of head 0's q, k or v matrix."""
    attention.c_attn.weight[row, "qkv".index(part) * D + column] = value


def repeated_pairs(n: int = 12, seed: int = 0) -> Prompts:
    """``... A B ... A`` with answer B; the contrast has another word for the first A, so nothing is repeated.

    The column ``after`` is the position of B.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        order = [WORDS[i] for i in torch.randperm(len(WORDS), generator=generator).tolist()]
        first, answer, other, filler = order[0], order[1], order[2], order[3:6]
        start = int(torch.randint(0, 3, (1,), generator=generator))
        words = [*filler[:start], first, answer, *filler[start:], first]
        contrast = [*filler[:start], other, answer, *filler[start:], first]
        rows.append({
            "prompt": " ".join(words), "contrast": " ".join(contrast), "answer": answer, "distractor": other,
            "after": start + 2,
        })  # fmt: skip
    return Prompts.of(rows)
