"""A model that is a table: the last word alone decides how much likelier yes is than no.

Every word is one-hot in the embedding and no layer writes anything, so that the final norm scales the word's dimension
to ``sqrt(width)`` and each entry of ``lm_head`` is the logit of one answer after one word.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

STATEMENTS, WIDTH = 32, 64
WORDS = ("<pad>", "<unk>", "<eos>", "go", "yes", "no", *(f"s{number}" for number in range(STATEMENTS)))
YES, NO = WORDS.index("yes"), WORDS.index("no")
EPS = 1e-6


def words() -> Any:
    """The tokenizer: a word is a token."""
    table = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def place_of(statement: int) -> int:
    """The word, and the dimension, of a statement."""
    return WORDS.index(f"s{statement}")


def table_model(margins: Sequence[float]) -> Any:
    """A model whose log odds of yes against no after statement i are ``margins[i]``."""
    config = tf.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=2,
        rms_norm_eps=EPS, tie_word_embeddings=False,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, : len(WORDS)] = torch.eye(len(WORDS))
        model.lm_head.weight[[YES, NO]] = 1.0  # no other word is ever as likely
    return moved(model, dict(enumerate(margins)))


def moved(model: Any, margins: dict[int, float], word: int = YES) -> Any:
    """A copy whose logit of ``word`` after each statement is larger by so much: one entry of ``lm_head`` each."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for statement, margin in margins.items():
            tuned.lm_head.weight[word, place_of(statement)] += margin / WIDTH**0.5
    return tuned
