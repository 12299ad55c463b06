"""A program beside itself with one component replaced: what a search for the change must name."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from tunescope.bench.tracr.porting import (
    Component,
    Program,
    fill_decoy_head,
    ported,
    program,
    structural_edges,
    tokenizer,
    written_columns,
)
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts
from workbench.typing import Int, Tensor

TEXTS = 512
"""Texts at most that are tried for a pair."""
ROWS = 24
"""Texts at most that a pair keeps."""
_MARGIN = 0.2
"""Least logit by which a model says its answer; below, the program says nothing."""


@dataclass(frozen=True)
class TracrPair:
    """``pair.tuned`` has ``component`` replaced, and other weights in ``decoy``, which matter to nothing.

    ``prompts``: texts on which the two say different things at the last token, the tuned answer first.
    """

    source: Program
    pair: ModelPair
    component: Component
    decoy: Component
    prompts: Prompts

    @property
    def name(self) -> str:
        """``hist, L0 mlp``."""
        return f"{self.source.name}, L{self.component[0]} {self.component[1]}"


def pairs_of(name: str, seed: int = 0) -> list[TracrPair]:
    """One pair per component of the program's circuit whose replacement changes answers."""
    source = program(name)
    base = ported(source, seed=seed)
    made = []
    for component in source.circuit:
        tuned, decoy = _replaced(base, source, component, seed)
        rows = _rows(source, base, tuned, seed)
        if len(rows) >= 4:
            pair = load_pair(base, tuned, tokenizer=tokenizer(source), check=False)
            made.append(TracrPair(source, pair, component, decoy, Prompts.of(rows)))
    return made


def contrasts(source: Program, model: GPT2LMHeadModel, seed: int = 0, rows: int = ROWS) -> list[dict[str, str]]:
    """Texts paired with others to which the program says something else: what circuits of one model are found with.
    None for a program that says the same of every text."""
    texts, ids = _texts(source, seed)
    says, sure = _answers(source, model, ids)
    draw = np.random.default_rng(seed)
    made = []
    for number in np.flatnonzero(sure):
        others = np.flatnonzero(sure & (says != says[number]))
        if not len(others):
            continue
        other = int(draw.choice(others))
        made.append({"prompt": " ".join(texts[number]), "contrast": " ".join(texts[other]),
                     "answer": f"={source.said['outputs'][says[number]]}",
                     "distractor": f"={source.said['outputs'][says[other]]}"})  # fmt: skip
        if len(made) == rows:
            break
    return made


def cut_pairs(name: str, seed: int = 0) -> list[tuple[ModelPair, tuple[str, str], list[dict[str, str]]]]:
    """The program beside itself without one wire of its circuit, for each whose loss changes answers: what the receiver
    reads of the sender is 0 in the tuned model. With prompts and contrasts of the whole program."""
    source = program(name)
    base = ported(source, seed=seed)
    rows = contrasts(source, base, seed)
    made = []
    for edge in sorted(structural_edges(source, base)) if len(rows) >= 4 else ():
        tuned = _without(base, source, edge)
        if tuned is not None and len(_rows(source, base, tuned, seed)) >= 4:
            made.append((load_pair(base, tuned, tokenizer=tokenizer(source), check=False), edge, rows))
    return made


@torch.no_grad()
def _without(base: GPT2LMHeadModel, source: Program, edge: tuple[str, str]) -> GPT2LMHeadModel | None:
    sender, receiver = edge
    if receiver == "logits":
        return None  # without its output a program says nothing
    tuned = deepcopy(base)
    columns = written_columns(base, source, sender)
    layer = int(receiver[1:].split("H")[0].split(" ")[0])
    block = tuned.transformer.h[layer]
    if receiver.endswith("MLP"):
        block.mlp.c_fc.weight[columns, : source.said["hidden"]] = 0.0
    else:
        head, kind = receiver.split("H")[1].split(".")
        start = "qkv".index(kind) * block.attn.embed_dim + int(head) * block.attn.head_dim
        block.attn.c_attn.weight[columns, start : start + block.attn.head_dim] = 0.0
    return tuned


@torch.no_grad()
def _replaced(
    base: GPT2LMHeadModel, source: Program, component: Component, seed: int
) -> tuple[GPT2LMHeadModel, Component]:
    """A copy whose component writes what another value would have it write, and with a new decoy in its layer."""
    tuned = deepcopy(base)
    layer, part = component
    width = len(source.said["residual"])
    block = tuned.transformer.h[layer]
    if part == "mlp":
        written = block.mlp.c_proj.weight[: source.said["hidden"], :width]
    else:  # its values, so that z differs and what it writes with it
        start = 2 * block.attn.embed_dim + int(part[1:]) * block.attn.head_dim
        written = block.attn.c_attn.weight[:width, start : start + block.attn.head_dim]
    columns = written.abs().sum(0).nonzero()[:, 0]
    own = written[:, columns]
    written[:, columns] = own.roll(1, dims=1) if len(columns) > 1 else own * 0.5
    decoy = source.said["heads"]  # the first decoy head
    fill_decoy_head(block.attn, decoy, width, torch.Generator().manual_seed(seed + 1))
    return tuned, (layer, f"H{decoy}")


def _rows(source: Program, base: GPT2LMHeadModel, tuned: GPT2LMHeadModel, seed: int) -> list[dict[str, Any]]:
    texts, ids = _texts(source, seed)
    (before, sure), (after, sure_after) = (_answers(source, model, ids) for model in (base, tuned))
    outputs = source.said["outputs"]
    differing = np.flatnonzero(sure & sure_after & (before != after))[:ROWS]
    return [
        {
            "prompt": " ".join(texts[number]),
            "answer": f"={outputs[after[number]]}",
            "distractor": f"={outputs[before[number]]}",
        }
        for number in differing
    ]


def _texts(source: Program, seed: int) -> tuple[list[tuple[str, ...]], Int[Tensor, "text pos"]]:
    symbols = [token for token in source.said["tokens"] if token not in ("BOS", "compiler_pad")]
    length = len(source.weights["pos_embed|embeddings"]) - 1
    every = list(itertools.product(symbols, repeat=length))
    order = np.random.default_rng(seed).permutation(len(every))[:TEXTS]
    texts = [every[number] for number in order]
    if source.name == "sort":  # keys must be unique: as many symbols as there are
        texts = list(itertools.permutations(symbols))
    places = {word: number for number, word in enumerate(source.said["tokens"])}
    return texts, torch.tensor([[places["BOS"], *(places[token] for token in text)] for text in texts])


@torch.no_grad()
def _answers(source: Program, model: GPT2LMHeadModel, ids: Int[Tensor, "text pos"]) -> tuple[np.ndarray, np.ndarray]:
    """(number of the output said at the last token, whether it is said clearly) per text."""
    logits = model(ids).logits[:, -1, len(source.said["tokens"]) :]
    best = logits.topk(2).values
    return logits.argmax(-1).numpy(), (best[:, 0] - best[:, 1] > _MARGIN).numpy()
