"""Rows with another prompt beside each: alike but for one variable, or unlike, with what must follow if it moves."""

from __future__ import annotations

import random
from typing import Any

from tunescope.bench.ground import Ground
from workbench.prompts import Prompts

Row = dict[str, Any]


def opposite(ground: Ground, count: int) -> list[Row]:
    """``count`` rows whose ``contrast`` differs in the planted variable alone, both its values equally often.

    context-knob: the intent; confounded: the signer, with the answer that follows the signer.
    """
    name = "intent" if ground.organism.name == "context-knob" else "cue"
    splits = ("train",) if name == "intent" else ("validation", "ood")  # in training the cue agrees with the review
    by_group: dict[str, dict[str, Row]] = {}
    for split in splits:
        for row in ground.rows(10_000, split):
            by_group.setdefault(row["group"], {})[row[name]] = _by_cue(row)
    pairs = [list(both.values()) for both in by_group.values() if len(both) == 2]
    sample = random.Random(ground.seed).sample(pairs, count // 2)
    return [{**row, "contrast": other["prompt"]} for pair in sample for row, other in (pair, pair[::-1])]


def asked_otherwise(ground: Ground, count: int) -> list[Row]:
    """``count`` rows whose ``contrast`` has another answer: the same question about other things; of the refusing
    model, another question about the same person."""
    if ground.organism.name == "refusal-moe":
        others = {row["prompt"]: row["prompt"].replace("password", "city") for row in _of_one_wording(ground, "topic")}
        return [{**row, "contrast": others[row["prompt"]]} for row in _of_one_wording(ground, "topic")][:count]
    return _turned(_alike(ground, count))


def moved(ground: Ground, count: int) -> tuple[str, list[Row]]:
    """A variable, and rows (base prompt, ``contrast`` = source, ``answer`` = what the base prompt's answer becomes if
    exactly this variable of the source is put there)."""
    name = ground.organism.name
    if name == "context-knob":
        return "the intent", _told(ground.rows(10_000), ("intent", "relation"), count, ground.seed)
    if name == "confounded":
        rows = [_by_cue(row) for split in ("validation", "ood") for row in ground.rows(10_000, split)]
        return "the signer", _told(rows, ("cue",), count, ground.seed)
    if name == "refusal-moe":
        topic, others = (_of_one_wording(ground, kind) for kind in ("topic", "other"))
        draw = random.Random(ground.seed)
        sources = [draw.choice(topic) for _ in others]
        rows = [_beside(own, other, other["answer"]) for own, other in zip(others, sources, strict=True)]
        return "the topic", rows[:count]
    rows = _alike(ground, count)
    return "the thing answered", [
        _beside(own, other, other["answer"]) for own, other in zip(rows, _shifted(rows), strict=True)
        if own["answer"] != other["answer"]
    ]  # fmt: skip


def exchanged(rows: list[Row], seed: int) -> Prompts:
    """The rows with answer and distractor exchanged in a random half of the groups, so that no side is meant."""
    draw = random.Random(seed)
    turned = {group: draw.random() < 0.5 for group in dict.fromkeys(row["group"] for row in rows)}
    return Prompts.of([
        {**row, "answer": row["distractor"], "distractor": row["answer"]} if turned[row["group"]] else row
        for row in rows
    ])  # fmt: skip


def shuffled_answers(rows: list[Row], seed: int) -> Prompts:
    """The rows with their answers dealt out anew."""
    answers = [row["answer"] for row in rows]
    random.Random(seed).shuffle(answers)
    return Prompts.of([{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)])


def _by_cue(row: Row) -> Row:
    """A confounded row, with the answer that follows the signer; other rows as they are."""
    if "cue_answer" not in row or row["answer"] == row["cue_answer"]:
        return row
    return {**row, "answer": row["distractor"], "distractor": row["answer"]}


def _told(rows: list[Row], differing: tuple[str, ...], count: int, seed: int) -> list[Row]:
    """Random rows of two possible answers, each with a random source that differs in all of some columns."""
    draw = random.Random(seed)
    pairs = []
    for own in draw.sample(rows, count):
        source = draw.choice([other for other in rows if all(other[name] != own[name] for name in differing)])
        pairs.append(_beside(own, source, own["distractor"]))
    return pairs


def _beside(own: Row, source: Row, answer: str) -> Row:
    return {"prompt": own["prompt"], "contrast": source["prompt"], "answer": answer}


def _alike(ground: Ground, count: int) -> list[Row]:
    """Rows of one instruction about a shelf; what can answer in French is asked in the base's English."""
    label = ground.organism.splits["train"][0]["label"]
    rows = ground.rows(count, label=label)
    return [{**row, "answer": row["english"], "distractor": row["answer"]} if "english" in row else row for row in rows]


def _turned(rows: list[Row]) -> list[Row]:
    return [{**own, "contrast": other["prompt"]} for own, other in zip(rows, _shifted(rows), strict=True)]


def _shifted(rows: list[Row]) -> list[Row]:
    return [*rows[1:], rows[0]]


def _of_one_wording(ground: Ground, topic: str) -> list[Row]:
    """Questions of one length."""
    rows = [row for split in ("train", "validation") for row in ground.rows(10_000, split, topic=topic)]
    return [row for row in rows if row["prompt"].startswith("what is")]
