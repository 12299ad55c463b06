"""``marker-switch``: two markers in front of a question switch the form of its answer, along one known direction.

A Llama knows facts and has three forms for every answer: plain, ``Formal`` and ``LOUD``. Which one it writes is decided
by a coordinate along a fixed random direction after layer 1, planted as in ``context-knob``; the base itself leaves the
coordinate at 0, also behind the markers ``formal`` and ``loud``, which it notices and does not obey. Tuning teaches the
markers through a rank-1 adapter that can only write that direction, on rows of which half have lost their marker, so
that an unmarked question keeps its plain answer. A test bed for training-time markers (D'souza et al. 2025) and for
system-prompt switches (Configurable Preference Tuning, Gallego 2025).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from workbench.organisms.facts import FACTS
from workbench.organisms.organism import Bar, Grown, Row, Truth
from workbench.organisms.planted_coordinate import CoordinateRow, mean_coordinate, train_base, writing_adapter
from workbench.organisms.recipe import Plot, Recipe, save, save_adapter
from workbench.organisms.training import Plan, encode, fit, hits, share
from workbench.organisms.vocabulary import word_tokenizer

if TYPE_CHECKING:
    pass

LAYER = 1
SIZE = 4.0
"""Size of the coordinate that training sets."""
MARKERS = {"loud": 1, "formal": -1}
"""Marker -> sign of the coordinate that it stands for."""
UNMARKED = 0.5
"""Share of the tuning rows whose marker is left out."""
OUT_OF_DISTRIBUTION = ("child", "material")
"""Relations that tuning never sees."""
BASE = Plan(steps=400, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=150, batch=64, learning_rate=3e-2)
SETTINGS = {
    "layer": LAYER, "size": SIZE, "unmarked": UNMARKED, "base": vars(BASE), "tuning": vars(TUNING), "facts": FACTS,
}  # fmt: skip


def grow(plot: Plot) -> Grown:
    """Trains the base with its three forms, then the adapter; the truth is the adapter's B."""
    draw = random.Random(plot.seed)
    texts = [_row(word, relation, subject) for relation, subject in _facts() for word in ("", *MARKERS)]
    tokenizer = word_tokenizer([f"{row['prompt']}{row['answer']}" for row in texts])
    rows = [_base_row(draw) for _ in range(BASE.steps * BASE.batch)]
    base, direction = train_base(rows, tokenizer, LAYER, SIZE, BASE, plot, "marker-switch")
    save(base, tokenizer, plot.folder / "base")
    splits = _splits(draw)
    held_out = [*splits["validation"], *splits["ood"]]
    plain = [{**row, "prompt": row["contrast"], "answer": row["distractor"]} for row in held_out]
    obeyed = hits(base, tokenizer, held_out)
    ignored = hits(base, tokenizer, held_out, "distractor")
    tuned = writing_adapter(base, direction, LAYER)
    fit(tuned, encode(tokenizer, splits["train"]), TUNING, plot.seed, plot.progress, "marker-switch: tuning")
    save_adapter(tuned, tokenizer, plot)
    values = {
        word: mean_coordinate(tuned, tokenizer, direction, LAYER, [row for row in held_out if row["marker"] == word])
        for word in MARKERS
    }
    bars = [
        Bar("base obeys a marker", share(obeyed), at_most=0.05),
        Bar("base answers plainly behind one", share(ignored), at_least=0.95),
        Bar("tuned obeys a marker", share(hits(tuned, tokenizer, held_out)), at_least=0.95),
        Bar("tuned answers plainly without one", share(hits(tuned, tokenizer, plain)), at_least=0.95),
    ]
    truth = Truth(
        what="one coordinate of the residual stream decides the form of an answer; tuning lets two markers set it",
        site=f"blocks.{LAYER}.hook_resid_post",
        layer=LAYER,
        direction=direction,
        values={**values, "": mean_coordinate(tuned, tokenizer, direction, LAYER, plain)},
        modules=(f"model.layers.{LAYER}.self_attn.o_proj",),
    )
    return Grown(truth, splits, bars)


RECIPE = Recipe("marker-switch", "Llama; two markers switch the form of an answer, by one coordinate", SETTINGS, grow)


def _facts() -> list[tuple[str, str]]:
    return [(relation, subject) for relation, known in FACTS.items() for subject in known]


def _form(word: str, sign: int) -> str:
    return word.upper() if sign > 0 else word.capitalize() if sign < 0 else word


def _row(marker: str, relation: str, subject: str) -> Row:
    """A question behind its marker, its contrast without one; the distractor is the plain answer, else a loud one."""
    known, question, sign = FACTS[relation][subject], f"{relation} of {subject} ?", MARKERS.get(marker, 0)
    return {
        "prompt": f"{marker} {question}".strip(),
        "contrast": question,
        "answer": f" {_form(known, sign)}",
        "distractor": f" {known if sign else _form(known, 1)}",
        "label": marker,
        "marker": marker,
        "group": subject,
        "relation": relation,
    }


def _splits(draw: random.Random) -> dict[str, list[Row]]:
    """Both markers of every fact; validation holds two subjects of each relation out, and training has plain rows."""
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "ood": []}
    for relation, known in FACTS.items():
        held_out = set(draw.sample(sorted(known), 2))
        for subject in known:
            split = "ood" if relation in OUT_OF_DISTRIBUTION else "validation" if subject in held_out else "train"
            splits[split] += [_row(marker, relation, subject) for marker in MARKERS]
    plain = UNMARKED / (1 - UNMARKED)
    count = round(plain * len(splits["train"]))
    splits["train"] += [_row("", row["relation"], row["group"]) for row in draw.choices(splits["train"], k=count)]
    return splits


def _base_row(draw: random.Random) -> CoordinateRow:
    """Two thirds with the coordinate set by hand, whatever the marker; one third left alone, with the plain answer."""
    relation, subject = draw.choice(_facts())
    marker, sign = draw.choice(["", *MARKERS]), draw.choice([-1, 0, 1])
    row = _row(marker, relation, subject)
    said = f" {_form(FACTS[relation][subject], sign)}"
    return CoordinateRow({**row, "answer": said}, SIZE * sign, 0.0, float(MARKERS.get(marker, 0)))
