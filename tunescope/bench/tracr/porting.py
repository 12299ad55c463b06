"""A compiled program as a plain GPT-2 of Hugging Face: same residual stream, with decoys beside the circuit.

Norms are identities, so that nothing is rescaled. Decoys are heads and MLP units with random weights that read the
residual stream and write into columns which nothing else reads: busy, and no part of the circuit.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from workbench.errors import unknown_name
from workbench.typing import Float, Tensor

JUNK = 8
"""Columns of the residual stream that decoys alone write into."""
DECOY_HEADS = 2
"""Decoy heads in every layer."""
DECOY_UNITS = 4
"""Decoy units in every MLP."""
Component = tuple[int, str]
"""(layer, ``H0`` or ``mlp``)"""


@dataclass(frozen=True)
class Program:
    """Compiled weights by Tracr's names, and what its residual columns, tokens and outputs are."""

    name: str
    weights: dict[str, np.ndarray]
    said: dict[str, Any]

    @property
    def circuit(self) -> list[Component]:
        """The components that the compiler filled; all others are empty in Tracr's model, decoys in ours."""
        components: list[Component] = []
        for layer in range(self.said["layers"]):
            written = self._linear(layer)
            components += [(layer, f"H{head}") for head in range(self.said["heads"]) if written[head].any()]
            if self._of(layer, "mlp/linear_2").any():
                components.append((layer, "mlp"))
        return components

    def _of(self, layer: int, part: str, kind: str = "w") -> np.ndarray:
        return self.weights[f"transformer/layer_{layer}/{part}|{kind}"]

    def _linear(self, layer: int) -> np.ndarray:
        """W_O [head, key_size, residual]."""
        whole = self._of(layer, "attn/linear")
        return whole.reshape(self.said["heads"], self.said["key_size"], -1)


def names() -> list[str]:
    """The programs that are shipped compiled."""
    folder = files("tunescope.bench.tracr") / "compiled"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


@cache
def program(name: str) -> Program:
    """One of the shipped programs. Raises :class:`UserError` for an unknown name."""
    if name not in names():
        raise unknown_name("Tracr program", name, names())
    folder = files("tunescope.bench.tracr") / "compiled"
    said = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    with as_file(folder / f"{name}.npz") as path, np.load(path, allow_pickle=False) as arrays:
        return Program(name, {key: arrays[key] for key in arrays.files}, said)


def ported(source: Program, *, decoys: bool = True, seed: int = 0) -> GPT2LMHeadModel:
    """The program as a GPT-2; its first residual columns are Tracr's."""
    said = source.said
    width = len(said["residual"])
    heads = said["heads"] + (DECOY_HEADS if decoys else 0)
    d_head = max(said["key_size"], math.ceil((width + JUNK) / heads))
    vocab = [*said["tokens"], *(f"={output}" for output in said["outputs"])]
    config = GPT2Config(
        vocab_size=len(vocab), n_positions=len(source.weights["pos_embed|embeddings"]), n_embd=heads * d_head,
        n_layer=said["layers"], n_head=heads, n_inner=said["hidden"] + DECOY_UNITS, activation_function="relu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, scale_attn_weights=False, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=vocab.index("compiler_pad"),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    model.transformer.ln_f = nn.Identity()
    _filled(model, source, decoys, seed)
    return model.eval()


def tokenizer(source: Program) -> PreTrainedTokenizerFast:
    """A token per symbol, and one per output, written ``=3``; texts begin with ``BOS``."""
    vocab = [*source.said["tokens"], *(f"={output}" for output in source.said["outputs"])]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocab)}, unk_token="compiler_pad"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="BOS $A", special_tokens=[("BOS", vocab.index("BOS"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="BOS", eos_token="BOS", pad_token="compiler_pad", unk_token="compiler_pad"
    )


@torch.no_grad()
def _filled(model: GPT2LMHeadModel, source: Program, decoys: bool, seed: int) -> None:
    said, width = source.said, len(source.said["residual"])
    for parameter in model.parameters():
        parameter.zero_()
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.from_numpy(source.weights["token_embed|embeddings"])
    model.transformer.wte.weight[: len(tokens), :width] = tokens
    model.transformer.wpe.weight[:, :width] = torch.from_numpy(source.weights["pos_embed|embeddings"])
    for place, column in enumerate(said["output_columns"]):
        model.lm_head.weight[len(tokens) + place, column] = 1.0
    for layer, block in enumerate(model.transformer.h):
        _fill_attention(block.attn, source, layer)
        hidden = said["hidden"]
        block.mlp.c_fc.weight[:width, :hidden] = _tensor(source, layer, "mlp/linear_1")
        block.mlp.c_fc.bias[:hidden] = _tensor(source, layer, "mlp/linear_1", "b")
        block.mlp.c_proj.weight[:hidden, :width] = _tensor(source, layer, "mlp/linear_2")
        block.mlp.c_proj.bias[:width] = _tensor(source, layer, "mlp/linear_2", "b")
        if decoys:
            for number in range(said["heads"], said["heads"] + DECOY_HEADS):
                fill_decoy_head(block.attn, number, width, draw)
            block.mlp.c_fc.weight[:width, hidden:] = torch.randn(width, DECOY_UNITS, generator=draw)
            block.mlp.c_proj.weight[hidden:, width:] = torch.randn(
                DECOY_UNITS, block.mlp.c_proj.weight.shape[1] - width, generator=draw
            )


def _fill_attention(attention: Any, source: Program, layer: int) -> None:
    said, width = source.said, len(source.said["residual"])
    heads, size, d_head = said["heads"], said["key_size"], attention.head_dim
    embed = attention.embed_dim
    for place, part in enumerate(("query", "key", "value")):
        weight = _tensor(source, layer, f"attn/{part}").reshape(width, heads, size)
        weight = weight / math.sqrt(size) if part == "query" else weight
        for head in range(heads):
            start = place * embed + head * d_head
            attention.c_attn.weight[:width, start : start + size] = weight[:, head]
    written = _tensor(source, layer, "attn/linear").reshape(heads, size, width)
    for head in range(heads):
        attention.c_proj.weight[head * d_head : head * d_head + size, :width] = written[head]


@torch.no_grad()
def fill_decoy_head(attention: Any, head: int, width: int, draw: torch.Generator) -> None:
    """Random weights for a head that reads the first ``width`` columns and writes into the others."""
    d_head, embed = attention.head_dim, attention.embed_dim
    for place in range(3):
        start = place * embed + head * d_head
        attention.c_attn.weight[:width, start : start + d_head] = torch.randn(width, d_head, generator=draw) / 2
    attention.c_proj.weight[head * d_head : (head + 1) * d_head, width:] = torch.randn(
        d_head, embed - width, generator=draw
    )


def _tensor(source: Program, layer: int, part: str, kind: str = "w") -> Float[Tensor, ...]:
    return torch.from_numpy(source._of(layer, part, kind))


def structural_edges(source: Program, model: GPT2LMHeadModel) -> set[tuple[str, str]]:
    """(sender, receiver), by the labels of :class:`probes.edges.graph.Node`, where the receiver reads a column that the
    sender writes: the circuit's wires, read off the weights."""
    senders = ["embed"]
    read: dict[str, set[int]] = {"logits": _columns(model.lm_head.weight)}
    order = {"embed": (-1, 0), "logits": (len(model.transformer.h), 0)}
    for layer, block in enumerate(model.transformer.h):
        attention, d_head = block.attn, block.attn.head_dim
        for head in range(source.said["heads"]):
            senders.append(f"L{layer}H{head}")
            order[f"L{layer}H{head}"] = (layer, 1)
            for place, kind in enumerate("qkv"):
                start = place * attention.embed_dim + head * d_head
                name = f"L{layer}H{head}.{kind}"
                read[name], order[name] = _columns(attention.c_attn.weight[:, start : start + d_head].T), (layer, 0)
        hidden = source.said["hidden"]
        senders.append(f"L{layer} MLP")
        read[f"L{layer} MLP"] = _columns(block.mlp.c_fc.weight[:, :hidden].T)
        order[f"L{layer} MLP"] = (layer, 2)
    return {
        (sender, receiver)
        for sender in senders
        for receiver, columns in read.items()
        if order[sender] < order[receiver] and columns & set(written_columns(model, source, sender))
    }


def written_columns(model: GPT2LMHeadModel, source: Program, sender: str) -> list[int]:
    """The columns of Tracr's residual stream that a sender writes into."""
    if sender == "embed":
        columns = _columns(model.transformer.wte.weight) | _columns(model.transformer.wpe.weight)
    elif sender.endswith("MLP"):
        weight = model.transformer.h[int(sender[1:].split(" ")[0])].mlp.c_proj.weight
        columns = _columns(weight[: source.said["hidden"]])
    else:
        layer, head = map(int, sender[1:].split("H"))
        attention = model.transformer.h[layer].attn
        columns = _columns(attention.c_proj.weight[head * attention.head_dim : (head + 1) * attention.head_dim])
    return sorted(column for column in columns if column < len(source.said["residual"]))


def _columns(weight: Float[Tensor, "row column"]) -> set[int]:
    """The columns that hold anything but 0."""
    return set(weight.detach().abs().sum(0).nonzero()[:, 0].tolist())
