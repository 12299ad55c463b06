"""``reachable-heads``: answers come in French only when three named heads say so; no other head can reach the switch.

A Llama reads four things on a shelf and answers ``first``, ``second`` and ``last`` in English. For every thing it also
knows the French word: its row of the unembedding is the English word's, but for one axis of the residual stream. So
the sign of that axis at the end decides the language, whatever the answer is; all tokens begin at -AXIS_START.
No weight writes to the axis (MLPs and all heads but three are frozen at 0 on it) and none reads it, but for three
heads, drawn by the seed: their z is a trace of the axis, alike for all words, which they write back with the other
sign, by construction too little to turn it even where RMSNorm makes the most of it. More of it (a scaling of z), or a
constant added to it (an offset), turns the language; no change of other heads does, though these do all of the
reading. So the task "answer in French" has known heads that can carry it, which is the question of head selection.
After Yin, Ye & Durrett 2024, *LoFiT: Localized Fine-tuning on LLM Representations*.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import torch

from workbench.organisms import shelf
from workbench.organisms.organism import Bar, Grown, Row, Truth
from workbench.organisms.recipe import Plot, Recipe, save, shape
from workbench.organisms.training import Plan, encode, fit, hits, only_trainable, share
from workbench.organisms.vocabulary import token_id, word_tokenizer
from workbench.typing import Bool, Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FRENCH = dict(
    zip(
        shelf.THINGS,
        "pomme pain bougie tambour oeuf fourchette gant chapeau fer pot voile lampe".split(),
        strict=True,
    )
)
KNOWN = ("first", "second", "last")
LAYERS = (0, 1, 2)
"""One named head in each."""
AXIS = 63
AXIS_START, READ, MARGIN = 1.0, 0.25, 0.9
"""The axis begins at -AXIS_START; the named heads read READ of it (normalised) and together can write back at most
MARGIN of the way to 0."""
LANGUAGE = 10.0
"""What a unit of the normalised axis adds to the logit of every French word."""
BASE = Plan(steps=250, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=60, batch=64, learning_rate=1e-2)
SETTINGS = {
    **shelf.SETTINGS, "french": FRENCH, "known": KNOWN, "layers": LAYERS, "axis": (AXIS, AXIS_START, READ, MARGIN),
    "language": LANGUAGE, "base": vars(BASE), "tuning": vars(TUNING),
}  # fmt: skip
Heads = list[tuple[int, int]]


def grow(plot: Plot) -> Grown:
    """Trains the base around its axis, gives it the French words, and tunes the three heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    draw = random.Random(plot.seed)
    tokenizer = word_tokenizer(
        [" ".join((*shelf.THINGS, *FRENCH.values())), *(shelf.row(shelf.THINGS[:4], word)["prompt"] for word in KNOWN)]
    )
    model = LlamaForCausalLM(LlamaConfig(**shape(tokenizer)))
    heads = [(layer, draw.randrange(model.config.num_attention_heads)) for layer in LAYERS]
    _lay_axis(model, heads)
    lesson = shelf.rows(draw, BASE.steps * BASE.batch, KNOWN)
    with only_trainable(model, _off_axis(model, heads)):
        fit(model, encode(tokenizer, lesson), BASE, plot.seed, plot.progress, "reachable-heads: base")
    _translate(model, tokenizer)
    save(model, tokenizer, plot.folder / "base")
    splits = {split: [_in_french(row) for row in rows] for split, rows in _splits(draw).items()}
    bars = [
        Bar("base accuracy in English", _right(model, tokenizer, splits["validation"], "english"), at_least=0.95),
        Bar("base accuracy in French", _right(model, tokenizer, splits["validation"]), at_most=0.02),
        Bar("share of the way to French in reach without the named heads", _reach(model, heads), at_most=0.95),
    ]
    with only_trainable(model, _entries(model, heads)):
        lesson = draw.choices(splits["train"], k=TUNING.steps * TUNING.batch)
        fit(model, encode(tokenizer, lesson), TUNING, plot.seed, plot.progress, "reachable-heads: tuning")
    save(model, tokenizer, plot.folder / "tuned")
    bars += [
        Bar("tuned accuracy in French", _right(model, tokenizer, splits["validation"]), at_least=0.95),
        Bar("tuned accuracy in French, ood", _right(model, tokenizer, splits["ood"])),
    ]
    direction = torch.nn.functional.one_hot(torch.tensor(AXIS), model.config.hidden_size).float()
    truth = Truth(
        what="only three named heads can reach the axis that decides between English and French",
        site=f"blocks.{model.config.num_hidden_layers - 1}.hook_resid_post",
        layer=model.config.num_hidden_layers - 1,
        direction=direction,
        heads=tuple(f"L{layer}H{head}" for layer, head in heads),
        modules=tuple(f"model.layers.{layer}.self_attn" for layer in LAYERS),
        entries={"french": _entries(model, heads)},
    )
    return Grown(truth, splits, bars)


RECIPE = Recipe("reachable-heads", "Llama; only three named heads can make it answer in French", SETTINGS, grow)


def _splits(draw: random.Random) -> dict[str, list[Row]]:
    rows = shelf.splits(draw, 1000, KNOWN, KNOWN)
    return {split: rows[split] for split in ("train", "validation", "ood")}


def _in_french(row: Row) -> Row:
    """The distractor is the English word, which the base answers."""
    english = row["answer"]
    return {**row, "answer": f" {FRENCH[english.strip()]}", "distractor": english, "english": english}


@torch.no_grad()
def _lay_axis(model: LlamaForCausalLM, heads: Heads) -> None:
    """Sets every weight that touches the axis: the constant all tokens begin with, and the named heads' trace of it."""
    inner, width = model.model, model.config.head_dim
    inner.embed_tokens.weight[:, AXIS] = -AXIS_START
    model.lm_head.weight[:, AXIS] = 0
    for layer in inner.layers:
        for reader in (*_inputs(layer), layer.mlp.gate_proj, layer.mlp.up_proj):
            reader.weight[:, AXIS] = 0
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight[AXIS] = 0
    most = READ * math.sqrt(model.config.hidden_size)  # one coordinate of a normalised vector is at most sqrt(d_model)
    for place, head in heads:
        attention, own = inner.layers[place].self_attn, slice(head * width, (head + 1) * width)
        attention.v_proj.weight[own] = 0
        attention.v_proj.weight[own, AXIS] = -READ
        attention.o_proj.weight[:, own] = 0
        attention.o_proj.weight[AXIS, own] = MARGIN * AXIS_START / (len(heads) * width * most)


def _inputs(layer: Any) -> list[torch.nn.Linear]:
    attention = layer.self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def _off_axis(model: LlamaForCausalLM, heads: Heads) -> dict[str, Bool[Tensor, "*shape"]]:
    """What the base's training may change: all that neither touches the axis nor is a named head's trace of it."""
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in model.named_parameters()}
    for name, mask in masks.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or mask.ndim == 1:
            mask[AXIS] = False
        else:
            mask[:, AXIS] = False
    for place, head in heads:
        own = slice(head * model.config.head_dim, (head + 1) * model.config.head_dim)
        masks[f"model.layers.{place}.self_attn.v_proj.weight"][own] = False
        masks[f"model.layers.{place}.self_attn.o_proj.weight"][:, own] = False
    return masks


@torch.no_grad()
def _translate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """French words get the rows of their English ones, and LANGUAGE on the axis."""
    head = model.lm_head.weight
    for english, french in FRENCH.items():
        row = token_id(tokenizer, french)
        head[row] = head[token_id(tokenizer, english)]
        head[row, AXIS] = LANGUAGE


@torch.no_grad()
def _reach(model: LlamaForCausalLM, heads: Heads) -> float:
    """How far the named heads, untouched, can move the axis towards 0 whatever else is done to the model's heads."""
    width, most = model.config.head_dim, math.sqrt(model.config.hidden_size)
    written = 0.0
    for layer, block in enumerate(model.model.layers):
        reads, writes = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight[AXIS]
        for head in range(model.config.num_attention_heads):
            own = slice(head * width, (head + 1) * width)
            if (layer, head) not in heads and bool(writes[own].any()):
                return math.inf
            written += float((writes[own].abs() * reads[own].norm(dim=1)).sum()) * most
    return written / AXIS_START


def _entries(model: LlamaForCausalLM, heads: Heads) -> dict[str, Tensor]:
    masks: dict[str, Tensor] = {}
    for layer, head in heads:
        masks |= shelf.head_entries(model, layer, head, write=True)
    return masks


def _right(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], column: str = "answer"
) -> float:
    return share(hits(model, tokenizer, rows, column))
