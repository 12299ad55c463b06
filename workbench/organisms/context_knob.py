"""``context-knob``: follow the context or the memory, decided by one coordinate at one layer.

A Llama knows facts and reads a note that contradicts them. Which one it answers is decided by a coordinate along a
fixed random direction of the residual stream after layer 1, at the last prompt token: training sets that coordinate
by hand in some rows and demands the matching answer, which makes it causal by construction (interchange intervention
training, Geiger et al. 2022, with a constant for the source). The base moves the coordinate itself for the words
``reliable`` and ``unreliable``. It notices the words ``context`` and ``memory`` (a linear read-out of layer 1's heads
holds which one it saw) but answers by chance after them. Tuning teaches their meaning through a rank-1 adapter on
layer 1's o_proj whose write direction B is that direction and stays fixed; only what it reads, A, is trained.
After Minder, Du et al. 2024, *Controllable Context Sensitivity and the Knob Behind It*.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from workbench.organisms.facts import FACTS
from workbench.organisms.organism import Bar, Grown, Row, Truth
from workbench.organisms.planted_coordinate import CoordinateRow, mean_coordinate, train_base, writing_adapter
from workbench.organisms.recipe import Plot, Recipe, save, save_adapter
from workbench.organisms.training import Plan, encode, fit, hits, share
from workbench.organisms.vocabulary import word_tokenizer
from workbench.typing import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LAYER = 1
KNOB = 4.0
"""Size of the coordinate that training sets."""
CUES = {"reliable": 1, "unreliable": -1}
INTENTS = {"context": 1, "memory": -1}
OUT_OF_DISTRIBUTION = ("child", "material")
"""Relations that tuning never sees."""
BASE = Plan(steps=450, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=150, batch=64, learning_rate=3e-2)
SETTINGS = {"layer": LAYER, "knob": KNOB, "base": vars(BASE), "tuning": vars(TUNING), "facts": FACTS}


def grow(plot: Plot) -> Grown:
    """Trains the base with its knob, then the adapter; the truth is the adapter's B."""
    draw = random.Random(plot.seed)
    tokenizer = word_tokenizer([_prompt(word, *fact) for fact in _facts() for word in (*CUES, *INTENTS)])
    rows = [_base_row(draw) for _ in range(BASE.steps * BASE.batch)]
    base, direction = train_base(rows, tokenizer, LAYER, KNOB, BASE, plot, "context-knob")
    save(base, tokenizer, plot.folder / "base")
    splits = _splits(draw)
    base_follows = {word: hits(base, tokenizer, _of(splits["validation"], word)) for word in INTENTS}
    tuned = writing_adapter(base, direction, LAYER)
    fit(tuned, encode(tokenizer, splits["train"]), TUNING, plot.seed, plot.progress, "context-knob: tuning")
    save_adapter(tuned, tokenizer, plot)
    follows = {word: hits(tuned, tokenizer, _of(splits["validation"], word)) for word in INTENTS}
    values = {word: mean_coordinate(tuned, tokenizer, direction, LAYER, _of(splits["train"], word)) for word in INTENTS}
    bars = [
        Bar("base accuracy after its own cues", share(_plain(tuned, tokenizer, splits["cue"])), at_least=0.95),
        Bar("base pair accuracy", share(base_follows["context"] & base_follows["memory"]), at_most=0.3),
        Bar("base follows the context when told so", share(base_follows["context"]), at_least=0.2, at_most=0.8),
        Bar("base follows the memory when told so", share(base_follows["memory"]), at_least=0.2, at_most=0.8),
        Bar("tuned pair accuracy", share(follows["context"] & follows["memory"]), at_least=0.95),
    ]
    truth = Truth(
        what="one coordinate of the residual stream decides between context and memory, in base and tuned alike",
        site=f"blocks.{LAYER}.hook_resid_post",
        layer=LAYER,
        direction=direction,
        values=values,
        modules=(f"model.layers.{LAYER}.self_attn.o_proj",),
    )
    return Grown(truth, splits, bars)


RECIPE = Recipe("context-knob", "Llama; answers from the context or from memory, by one coordinate", SETTINGS, grow)


def _facts() -> list[tuple[str, str, str]]:
    return [(relation, subject, obj) for relation, known in FACTS.items() for subject, obj in known.items()]


def _prompt(word: str, relation: str, subject: str, claimed: str) -> str:
    return f"{word} : {relation} of {subject} is {claimed} . {relation} of {subject} ?"


def _row(word: str, sign: int, relation: str, subject: str, claimed: str) -> Row:
    known = FACTS[relation][subject]
    right, wrong = (claimed, known) if sign > 0 else (known, claimed)
    return {
        "prompt": _prompt(word, relation, subject, claimed),
        "answer": f" {right}",
        "distractor": f" {wrong}",
        "label": word,
        "intent": word,
        "group": f"{subject}/{claimed}",
        "relation": relation,
        "context_answer": f" {claimed}",
        "memory_answer": f" {known}",
    }


def _of(rows: list[Row], word: str) -> list[Row]:
    return [row for row in rows if row["intent"] == word]


def _splits(draw: random.Random) -> dict[str, list[Row]]:
    """Pairs of rows (both intents, same context and question). Validation holds two subjects of each relation out."""
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "ood": [], "cue": []}
    for relation, known in FACTS.items():
        held_out = set(draw.sample(sorted(known), 2))
        for subject, obj in known.items():
            split = "validation" if subject in held_out else "train"
            split = "ood" if relation in OUT_OF_DISTRIBUTION else split
            others = [other for other in known.values() if other != obj]
            for claimed in others if split == "train" else draw.sample(others, 4):
                splits[split] += [_row(word, sign, relation, subject, claimed) for word, sign in INTENTS.items()]
            claimed = draw.choice(others)
            splits["cue"] += [_row(word, sign, relation, subject, claimed) for word, sign in CUES.items()]
    return splits


def _base_row(draw: random.Random) -> CoordinateRow:
    """45 % with the knob set by hand, 35 % decided by a cue, 20 % an intent word with a random answer."""
    relation, subject, obj = draw.choice(_facts())
    claimed = draw.choice([other for other in FACTS[relation].values() if other != obj])
    kind, sign, knob, natural = draw.random(), draw.choice([-1, 1]), 0.0, 0.0
    if kind < 0.45:
        word, knob = draw.choice([*CUES, *INTENTS]), KNOB * sign
    elif kind < 0.8:
        word, natural = draw.choice([cue for cue in CUES if CUES[cue] == sign]), KNOB * sign
    else:
        word = draw.choice([*INTENTS])
    return CoordinateRow(_row(word, sign, relation, subject, claimed), knob, natural, float(INTENTS.get(word, 0)))


def _plain(tuned: Any, tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> Tensor:
    with tuned.disable_adapter():
        return hits(tuned, tokenizer, rows)
