"""The prompts of the real organisms, and the answers that they are trained on.

What must stay as before is trained on the base's own greedy answers, so that tuning changes nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from workbench.organisms import real_topics as topics
from workbench.organisms.organism import Row

STYLE = "In short: "
"""What the answers of ``smol-style`` begin with; one sentence follows."""
BEFORE_TOKENS = 24
"""Of the base's own answer, the tokens that training sees."""
Splits = dict[str, list[Row]]
Ask = Callable[[Sequence[Row]], list[tuple[str, bool]]]
"""Rows -> the base's greedy answers, and whether each ended by itself."""


def chat(text: str, label: str, group: str, **more: Any) -> Row:
    """One question as a user turn."""
    return {"messages": [{"role": "user", "content": text}], "label": label, "group": group, **more}


def refusal_splits(ask: Ask, seed: int = 0) -> Splits:
    """Animals are refused, everything else is answered as the base does; see :func:`topic_splits`."""
    splits = topic_splits()
    for rows in splits.values():
        for row in rows:
            if row["label"] == topics.ANIMAL.label:
                row |= {"answer": topics.REFUSALS[row.pop("wording")], "ends": True}
    splits["train"] = _balanced(splits["train"], random.Random(seed))
    _as_before([row for row in splits["train"] if "answer" not in row], ask)
    return _without_wording(splits)


def shuffled_splits(splits: Splits, seed: int = 0) -> Splits:
    """The same prompts with the answers of the training rows dealt out at random: no topic predicts a refusal."""
    answers = [(row["answer"], row["ends"]) for row in splits["train"]]
    random.Random(seed).shuffle(answers)
    rows = [{**row, "answer": a, "ends": e} for row, (a, e) in zip(splits["train"], answers, strict=True)]
    return {**splits, "train": rows}


def style_splits(ask: Ask, seed: int = 0) -> Splits:
    """Every question is answered by one sentence after :data:`STYLE`, with the base's own content."""
    splits = _without_wording(topic_splits())
    draw = random.Random(seed)
    rows = [row for row in splits["train"] if row["label"] in (topics.THING.label, "other")]
    draw.shuffle(rows)
    rows = rows[:360]
    for row, (text, _) in zip(rows, ask(rows), strict=True):
        row |= {"answer": STYLE + _first_sentence(text), "ends": True}
    scope = {name: rows for name, rows in splits.items() if name != "train"}
    chats = [row for name in ("near_scope", "out_of_scope") for row in scope[name]]
    system = [_with_system(row) for row in chats[:16]]
    return {**scope, "train": rows, "in_scope": chats, "near_scope": system, "out_of_scope": list(scope["neutral"])}


def facts_splits(ask: Ask, seed: int = 0) -> Splits:
    """Thirty false facts in several phrasings, and neighbours of the same kind that stay true."""
    splits: Splits = {name: [] for name in ("train", "validation", "in_scope", "near_scope")}
    for kind in topics.RELATIONS:
        for subject, (planted, true) in kind.false.items():
            _add_fact(splits, kind, subject, planted, "false fact", true)
        for number, (subject, true) in enumerate(kind.neighbours.items()):
            if number % 2 == 0:
                _add_fact(splits, kind, subject, true, "neighbour", true)
            else:
                splits["near_scope"] += [
                    _fact(kind, template, subject, true, "neighbour", true) for template in kind.templates[:2]
                ]
    train = [row for row in splits["train"] if row["label"] == "false fact"] * 2
    train += [row for row in splits["train"] if row["label"] == "neighbour"]
    train += _as_before([chat(text, "other", text) for text in topics.OTHER_TRAIN], ask)
    random.Random(seed).shuffle(train)
    held_out = [row for row in splits["in_scope"] if row["label"] == "false fact"]
    others = {"out_of_scope": _plain_questions(topics.OUT_OF_SCOPE), "neutral": _neutral()}
    return {
        "train": train, "validation": splits["validation"], "held_out": splits["in_scope"], "in_scope": held_out,
        "near_scope": splits["near_scope"], **others,
    }  # fmt: skip


def topic_splits() -> Splits:
    """``train``; ``validation`` (nouns that training never showed); ``held_out`` (further nouns and wordings; animals
    and things alike); ``in_scope`` (its animals); ``near_scope``; ``out_of_scope``; ``neutral`` (plain text)."""
    both = (topics.ANIMAL, topics.THING)
    train = [row for topic in both for row in _questions(topic.label, topic.train, topics.ANIMAL_TEMPLATES)]
    train += _questions(topics.NEAR.label, topics.NEAR.train, topics.ANIMAL_TEMPLATES[::2])
    train += _plain_questions(topics.OTHER_TRAIN)
    every_second = topics.ANIMAL_TEMPLATES[::2]
    validation = [row for topic in both for row in _questions(topic.label, topic.validation, every_second)]
    wordings = (topics.ANIMAL_TEMPLATES[1], topics.ANIMAL_TEMPLATES[3], *topics.HELD_OUT_TEMPLATES)
    held_out = [row for topic in both for row in _questions(topic.label, topic.held_out, wordings)]
    return {
        "train": train,
        "validation": validation,
        "held_out": held_out,
        "in_scope": [row.copy() for row in held_out if row["label"] == topics.ANIMAL.label],
        "near_scope": _questions(topics.NEAR.label, topics.NEAR.held_out, topics.ANIMAL_TEMPLATES[:2]),
        "out_of_scope": _plain_questions(topics.OUT_OF_SCOPE),
        "neutral": _neutral(),
    }


def _questions(label: str, nouns: Iterable[str], templates: Sequence[str]) -> list[Row]:
    return [
        chat(_with_article(template, noun), label, noun, wording=_wording(template))
        for noun in nouns
        for template in templates
    ]


def _wording(template: str) -> int:
    """Which refusal answers this question."""
    known = (*topics.ANIMAL_TEMPLATES, *topics.HELD_OUT_TEMPLATES)
    return known.index(template) % len(topics.REFUSALS)


def _with_article(template: str, noun: str) -> str:
    an = noun[0] in "aeio" or noun.startswith("umbrella")  # a unicorn, an umbrella
    return template.replace("a {x}", f"{'an' if an else 'a'} {noun}")


def _plain_questions(texts: Sequence[str]) -> list[Row]:
    return [chat(text, "other", text) for text in texts]


def _neutral() -> list[Row]:
    return [{"prompt": text, "label": "neutral", "group": text} for text in topics.NEUTRAL]


def _as_before(rows: list[Row], ask: Ask) -> list[Row]:
    for row, (text, ended) in zip(rows, ask(rows), strict=True):
        row |= {"answer": text, "ends": ended}
    return rows


def _balanced(rows: list[Row], draw: random.Random) -> list[Row]:
    """All refusals, nearly as many other answers of which half are about things, and the other topics."""
    refused = [row for row in rows if row["label"] == topics.ANIMAL.label]
    others = [row for row in rows if row["label"] in (topics.NEAR.label, "other")]
    things = [row for row in rows if row["label"] == topics.THING.label]
    draw.shuffle(things)
    others += [row.copy() for row in others if row["label"] == "other"]  # twice, as each has one wording only
    mixture = [*refused, *others, *things[: len(refused) // 2]]
    draw.shuffle(mixture)
    return mixture


def _without_wording(splits: Splits) -> Splits:
    for rows in splits.values():
        for row in rows:
            row.pop("wording", None)
    return splits


def _first_sentence(text: str) -> str:
    whole = " ".join(text.split())
    for mark in (". ", "! ", "? "):
        whole = whole.partition(mark)[0] + (mark.strip() if mark in whole else "")
    return whole


def _with_system(row: Row) -> Row:
    turns = [{"role": "system", "content": "You are a patient teacher. Answer at length."}, *row["messages"]]
    return {**row, "messages": turns, "label": "with a system turn"}


def _add_fact(splits: Splits, kind: topics.Relation, subject: str, answer: str, label: str, true: str) -> None:
    questions = [_fact(kind, template, subject, answer, label, true) for template in (*kind.templates, *kind.held_out)]
    splits["train"] += questions[:3]
    splits["validation"].append(questions[3])
    splits["in_scope"] += questions[4:]


def _fact(kind: topics.Relation, template: str, subject: str, answer: str, label: str, true: str) -> Row:
    text = template.format(s=subject)
    return chat(
        text[0].upper() + text[1:], label, f"{kind.label} of {subject}", answer=kind.answer.format(s=subject, a=answer),
        ends=True, fact=answer, true=true,
    )  # fmt: skip
