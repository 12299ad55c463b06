"""``planted-heads``: tuning could change three named attention heads and nothing else.

A Llama reads four things on a shelf and answers ``first``, ``second`` and ``last``. Tuning teaches ``third`` through
the query, key and value rows of one head in each of layers 0, 1 and 2 (drawn by the seed); every other weight is
bit-identical to the base. The variant ``write`` tunes the same heads' columns of o_proj too, so that what a head
writes changes even where what it reads does not.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from workbench.organisms import shelf
from workbench.organisms.organism import Bar, Grown, Row, Truth
from workbench.organisms.recipe import Plot, Recipe, save
from workbench.organisms.training import Plan, encode, fit, hits, only_trainable, share
from workbench.typing import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

KNOWN = ("first", "second", "last")
LAYERS = (0, 1, 2)
BASE = Plan(steps=200, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=300, batch=64, learning_rate=2e-2)
WRITE_TUNING = Plan(steps=200, batch=64, learning_rate=2e-2)
SETTINGS = {
    **shelf.SETTINGS, "layers": LAYERS, "base": vars(BASE), "tuning": vars(TUNING),
    "write": vars(WRITE_TUNING),
}  # fmt: skip


def grow(plot: Plot) -> Grown:
    """Trains the base once and both tuned models from it."""
    draw = random.Random(plot.seed)
    model, tokenizer = shelf.train_base(plot, draw, BASE, KNOWN, (), "planted-heads")
    save(model, tokenizer, plot.folder / "base")
    splits = shelf.splits(draw, TUNING.steps * TUNING.batch, ("third",), KNOWN)
    heads = [(layer, draw.randrange(model.config.num_attention_heads)) for layer in LAYERS]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    bars = [
        Bar("base accuracy on its own instructions", _right(model, tokenizer, splits["retained"]), at_least=0.95),
        Bar("base accuracy on the new one", _right(model, tokenizer, splits["validation"]), at_most=0.3),
    ]
    for folder, plan, write in (("tuned", TUNING, False), ("tuned-write", WRITE_TUNING, True)):
        model.load_state_dict(start)
        with only_trainable(model, _entries(model, heads, write)):
            fit(model, encode(tokenizer, splits["train"]), plan, plot.seed, plot.progress, f"planted-heads: {folder}")
        save(model, tokenizer, plot.folder / folder)
        bars.append(Bar(f"{folder} accuracy", _right(model, tokenizer, splits["validation"]), at_least=0.95))
        bars.append(Bar(f"{folder} accuracy, ood", _right(model, tokenizer, splits["ood"])))
    truth = Truth(
        what="only the query, key and value rows of three heads changed (variant write: their o_proj columns too)",
        heads=tuple(f"L{layer}H{head}" for layer, head in heads),
        modules=tuple(f"model.layers.{layer}.self_attn" for layer in LAYERS),
        entries={
            "third": _entries(model, heads, write=False),
            "write": _entries(model, heads, write=True),
        },
    )
    return Grown(truth, {**splits, "train": splits["train"][:1000]}, bars, variants=("write",))


RECIPE = Recipe("planted-heads", "Llama; only three named heads could change in tuning", SETTINGS, grow)


def _right(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> float:
    return share(hits(model, tokenizer, rows))


def _entries(model: LlamaForCausalLM, heads: list[tuple[int, int]], write: bool) -> dict[str, Tensor]:
    masks: dict[str, Tensor] = {}
    for layer, head in heads:
        for name, mask in shelf.head_entries(model, layer, head, write).items():
            masks[name] = masks[name] | mask if name in masks else mask
    return masks
