"""A model whose knob is known: a gate along one direction ``u`` mixes a context code and a prior code.

The residual after layer 0 is ``noise + sign * strength * u + context code + prior code``, written by hand into the
embedding of each row's last token; layer 1 reads it as sigmoid(gain * u.h) * context + (1 - ...) * prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from workbench.models.adapted import AdaptedModel

WIDTH, ANSWERS = 64, 16


class Gate(nn.Module):
    """Layer 1: the answer's logits, written into the first dimensions of the residual."""

    def __init__(self, u: torch.Tensor, context: torch.Tensor, prior: torch.Tensor, gain: float) -> None:
        super().__init__()
        self.u, self.gain = nn.Parameter(u), gain
        self.context, self.prior = nn.Parameter(context), nn.Parameter(prior)
        self.mlp = nn.Identity()  # the place where the engine looks for a router

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        gate = torch.sigmoid(self.gain * hidden_states @ self.u)[..., None]
        says = gate * (hidden_states @ self.context.T) + (1 - gate) * (hidden_states @ self.prior.T)
        return torch.nn.functional.pad(says, (0, WIDTH - ANSWERS))


@dataclass
class Planted:
    """A pair (the base's states carry no intent), its prompts, and the planted direction."""

    pair: Any
    prompts: list[dict[str, str]]
    u: torch.Tensor


def planted_knob(pairs: int = 80, seed: int = 0, strength: float = 2.0) -> Planted:
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q.T
    u, context, prior = frame[0], frame[1 : 1 + ANSWERS], frame[1 + ANSWERS : 1 + 2 * ANSWERS]
    first = torch.randint(ANSWERS, (pairs,), generator=generator)
    second = (first + torch.randint(1, ANSWERS, (pairs,), generator=generator)) % ANSWERS
    # the remaining directions carry noise, the same in both rows of a pair only in part
    noise = torch.randn(2 * pairs, WIDTH - 1 - 2 * ANSWERS, generator=generator) @ frame[1 + 2 * ANSWERS :]
    codes = 3.0 * (context[first] + prior[second]).repeat_interleave(2, 0)
    sign = torch.tensor([1.0, -1.0]).repeat(pairs)[:, None]
    names = ["<pad>", "<unk>", "go", *(f"a{i}" for i in range(ANSWERS)), *(f"s{i}" for i in range(2 * pairs))]
    prompts = [
        {
            "prompt": f"go s{row}",
            "group": f"g{row // 2}",
            "intent": ("context", "prior")[row % 2],
            "answer": f"a{(first, second)[row % 2][row // 2]}",
        }
        for row in range(2 * pairs)
    ]
    tokenizer = _tokenizer(names)
    states = noise + codes
    base = _model(names, states, Gate(u, context, prior, 3.0))
    tuned = _model(names, states + sign * strength * u, Gate(u, context, prior, 3.0))
    pair = SimpleNamespace(
        base=AdaptedModel(base, tokenizer, name="base", role="base"),
        tuned=AdaptedModel(tuned, tokenizer, name="tuned", role="tuned"),
    )
    return Planted(pair, prompts, u)


def _tokenizer(names: list[str]) -> Any:
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def _model(names: list[str], states: torch.Tensor, gate: Gate) -> Any:
    config = tf.LlamaConfig(
        vocab_size=len(names), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8
    )
    model = tf.LlamaForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()  # layer 0 hands the embedding on as it is
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[3 + ANSWERS :] = states
        model.lm_head.weight.zero_()
        model.lm_head.weight[3 : 3 + ANSWERS, :ANSWERS] = 4 * torch.eye(ANSWERS)
    model.model.layers[1] = gate
    return model.eval()
