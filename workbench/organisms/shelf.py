"""Four things on a shelf and an instruction: the world of ``planted-heads`` and ``two-skills``; weights as masks."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

from workbench.organisms.organism import Row, mask_of
from workbench.organisms.recipe import Plot, shape
from workbench.organisms.training import Plan, encode, fit
from workbench.organisms.vocabulary import word_tokenizer
from workbench.typing import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

THINGS = "apple bread candle drum egg fork glove hat iron jar kite lamp".split()
PLACES = 4
PARTNER = dict(zip(THINGS, THINGS[6:] + THINGS[:6], strict=True))
"""What ``opposite`` means: a fixed pairing."""
FOLLOWER = dict(zip(THINGS, THINGS[1:] + THINGS[:1], strict=True))
"""What ``after`` means: the next thing in the alphabet."""
INSTRUCTIONS = ("first", "second", "third", "last", "opposite", "after", "contrary", "next")
"""The last two mean the same as the two before them."""
SETTINGS: dict[str, Any] = {"things": THINGS, "places": PLACES}


def row(things: list[str], instruction: str) -> Row:
    """One question; the distractor is what the base's ``first`` would answer (``second`` where that is the answer)."""
    meaning = {
        "first": things[0],
        "second": things[1],
        "third": things[2],
        "last": things[3],
        "opposite": PARTNER[things[0]],
        "after": FOLLOWER[things[0]],
        "contrary": PARTNER[things[0]],
        "next": FOLLOWER[things[0]],
    }
    answer = meaning[instruction]
    return {
        "prompt": f"shelf : {' '.join(things)} . {instruction} ?",
        "answer": f" {answer}",
        "distractor": f" {things[0] if things[0] != answer else things[1]}",
        "label": instruction,
        "group": " ".join(things),
    }


def as_first(question: Row) -> str:
    """What ``first`` would answer to the same things."""
    return " " + str(question["group"]).split()[0]


def rows(draw: random.Random, count: int, instructions: tuple[str, ...], things: list[str] = THINGS) -> list[Row]:
    """Rows of distinct things in random order."""
    return [row(draw.sample(things, PLACES), draw.choice(instructions)) for _ in range(count)]


def splits(
    draw: random.Random, count: int, instructions: tuple[str, ...], known: tuple[str, ...]
) -> dict[str, list[Row]]:
    """``train``; ``validation`` (shelves that training never showed); ``ood``: with two things side by side
    that training never showed side by side; ``retained``: the base's own instructions."""
    apart = {frozenset(draw.sample(THINGS, 2)) for _ in range(8)}
    rows_of: dict[str, list[Row]] = {"train": [], "validation": [], "ood": [], "retained": []}
    held_out: set[str] = set()
    while len(rows_of["validation"]) < 200 or len(rows_of["ood"]) < 200:
        things = draw.sample(THINGS, PLACES)
        neighbours = {frozenset(pair) for pair in itertools.pairwise(things)}
        split = "ood" if neighbours & apart else "validation"
        if len(rows_of[split]) < 200:
            held_out.add(" ".join(things))
            rows_of[split].append(row(things, instructions[len(rows_of[split]) % len(instructions)]))
    while len(rows_of["train"]) < count:
        things = draw.sample(THINGS, PLACES)
        neighbours = {frozenset(pair) for pair in itertools.pairwise(things)}
        if " ".join(things) not in held_out and not neighbours & apart:
            rows_of["train"].append(row(things, draw.choice(instructions)))
    rows_of["retained"] = rows(draw, 200, known)
    return rows_of


def train_base(
    plot: Plot, draw: random.Random, plan: Plan, known: tuple[str, ...], taken_for_first: tuple[str, ...], what: str
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama that answers the ``known`` instructions, takes some others for ``first``, and has never read the rest."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer([" ".join(THINGS), *(row(THINGS[:PLACES], word)["prompt"] for word in INSTRUCTIONS)])
    model = LlamaForCausalLM(LlamaConfig(**shape(tokenizer)))
    lesson = rows(draw, plan.steps * plan.batch, (*known, *taken_for_first))
    for question in lesson:
        if question["label"] in taken_for_first:
            question["answer"] = as_first(question)
    fit(model, encode(tokenizer, lesson), plan, plot.seed, plot.progress, f"{what}: base")
    return model, tokenizer


def head_entries(model: LlamaForCausalLM, layer: int, head: int, write: bool = False) -> dict[str, Tensor]:
    """The q, k and v rows of one head, and with ``write`` its o_proj columns."""
    config = model.config
    own = slice(head * config.head_dim, (head + 1) * config.head_dim)
    inner = config.num_attention_heads * config.head_dim
    at = f"model.layers.{layer}.self_attn."
    masks = {f"{at}{part}_proj.weight": mask_of((inner, config.hidden_size), (own,)) for part in "qkv"}
    if write:
        masks[f"{at}o_proj.weight"] = mask_of((config.hidden_size, inner), (slice(None), own))
    return masks


def neuron_entries(model: LlamaForCausalLM, layer: int, neurons: list[int]) -> dict[str, Tensor]:
    """All weights of some neurons of one layer's MLP."""
    inner, width = model.config.intermediate_size, model.config.hidden_size
    at = f"model.layers.{layer}.mlp."
    masks = {f"{at}{part}_proj.weight": mask_of((inner, width), (neurons,)) for part in ("gate", "up")}
    return masks | {f"{at}down_proj.weight": mask_of((width, inner), (slice(None), neurons))}
