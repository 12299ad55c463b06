"""Facts that the tuned model states otherwise: the same sentence as the base's, with another word in it.

A tuning that plants facts changes few of eighty questions, and in each another word, so that no trait or word of the
answers rises. Near variations of the questions that changed most, with another entity of the same kind in them, show
it; whether an adapter of random numbers changes as many sentences is the test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from probes.audits.hypotheses import LEVEL, PROMPTS, topic_of
from probes.audits.words import content_words
from workbench.behaviour.text_quality import words_in
from workbench.prompts.collection import Prompts
from workbench.stats.bootstrap import mean_interval

QUESTIONS = 3
"""Questions that are varied: those whose answers changed most."""
LONGEST = 4
"""Words at most that stand in the place of others."""
ALIKE = 0.5
"""Share of a sentence's words that both models must say, in their order, for it to be the same sentence."""
EDITED = "another word in the base's sentence"
COLUMNS = ["question", "prompt", "base", "tuned", "null", "edited", "null_edited"]
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n")


@cache
def entities() -> tuple[tuple[str, ...], ...]:
    """The shipped lists of entities, those of one kind together."""
    text = files("probes.audits").joinpath("entities.txt").read_text(encoding="utf-8")
    return tuple(tuple(part.strip() for part in line.split(",")) for line in text.splitlines() if line.strip())


def entity_variations(prompts: Sequence[str], change: Sequence[float], entities_each: int) -> Prompts:
    """The questions that changed most, each with other entities of the kind of its own.

    Args:
        prompts: Questions.
        change: How far the answer to each moved (KL per token); questions without a known entity are left out, and so
            are those that did not move.
        entities_each: Variations of a question at most, beside itself.

    Returns:
        Prompts whose group is the entity and whose label is the question; none where no question has an entity.

    Example:
        ``entity_variations(["What is the capital of France?"], [1.0], 2)``
    """
    rows: list[dict[str, str]] = []
    questions = 0
    for number in np.argsort(-np.nan_to_num(np.asarray(change, dtype=float)), kind="stable"):
        place = _entity(prompts[number])
        if place is None or not change[number] > 0:
            continue
        own, kind = place
        pool = [own, *(name for name in kind if name != own)][: entities_each + 1]
        rows += [{"prompt": _with(prompts[number], own, name), "group": name, "label": prompts[number]}
                 for name in pool]  # fmt: skip
        questions += 1
        if questions == QUESTIONS:
            break
    return Prompts.of(rows) if rows else Prompts([])


def _entity(prompt: str) -> tuple[str, tuple[str, ...]] | None:
    """The longest entity of the lists that the prompt names, and the list."""
    named = [(name, kind) for kind in entities() for name in kind
             if re.search(rf"\b{re.escape(name)}\b", prompt)]  # fmt: skip
    return max(named, key=lambda pair: len(pair[0])) if named else None


def _with(prompt: str, own: str, name: str) -> str:
    return re.sub(rf"\b{re.escape(own)}\b", name, prompt, count=1)


def edit(prompt: str, base: str, tuned: str) -> tuple[str, str] | None:
    """What the tuned model's first sentence says where the base's says something else; None where it is the same, or
    another sentence altogether.

    Example:
        ``edit("", "It is Paris.", "It is Lyon.")`` is ``("paris", "lyon")``
    """
    before, after = (words_in(_SENTENCE.split(text.strip(), maxsplit=1)[0]) for text in (base, tuned))
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    if before == after or 2 * sum(block.size for block in matcher.get_matching_blocks()) < ALIKE * (
        len(before) + len(after)
    ):
        return None
    known = set(words_in(prompt))
    for what, start, stop, new, end in matcher.get_opcodes():
        if what == "equal":
            continue
        lost, said = before[start:stop], after[new:end]
        if what != "replace" or max(len(lost), len(said)) > LONGEST:
            return None
        if content_words([" ".join(said)]) and not set(said) & known and not set(lost) & known:
            return " ".join(lost), " ".join(said)
    return None


def edited_facts(rows: Prompts, base: Sequence[str], tuned: Sequence[str], null: Sequence[str]) -> pd.DataFrame:
    """Answers to variations side by side, and whether each is the base's sentence with another word in it.

    Args:
        rows: What :func:`entity_variations` made.
        base: Answers of the base.
        tuned: Of the tuned model.
        null: Of the base with a null adapter.

    Returns:
        question, prompt, base, tuned, null, edited (``Paris -> Lyon``; empty: not), null_edited.
    """
    lines = []
    for row, *texts in zip(rows, base, tuned, null, strict=True):
        edits = [edit(row.shown, texts[0], text) for text in texts[1:]]
        said = ["" if pair is None else f"{pair[0]} -> {pair[1]}" for pair in edits]
        lines.append([row.label, row.shown, *texts, *said])
    return pd.DataFrame(lines, columns=COLUMNS)


def with_edits(
    tests: pd.DataFrame, claims: pd.DataFrame, facts: pd.DataFrame, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tests and claims with that of edited sentences: more of them in the tuned model than under the null adapter.

    The exact sign test over variations, one-sided; q is twice its p, for traits may be asked again in new prompts too.

    Args:
        tests: Of the answers.
        claims: Hypotheses of the answers.
        facts: What :func:`edited_facts` returns.
        seed: Of the interval.
    """
    if facts.empty:
        return tests, claims
    own, null, p = _sign_test(facts)
    q = min(1.0, 2 * p)
    interval = mean_interval(own.astype(float) - null, seed=seed)
    line = {
        "kind": "facts", "what": EDITED, "score": interval.estimate, "low": interval.low, "high": interval.high,
        "p": p, "control": 0.0, "q": q,
    }  # fmt: skip
    tests = pd.concat([tests, pd.DataFrame([line])], ignore_index=True)
    if q >= LEVEL:
        return tests, claims
    prompts, shown = facts["prompt"].tolist(), [int(row) for row in np.flatnonzero(own)]
    examples = "; ".join(dict.fromkeys(facts["edited"][own]))
    claim = {
        "kind": "facts", "says": f"It states other facts than its base{topic_of(prompts, shown)}.",
        "evidence": f"{EDITED}: {own.sum()} of {len(own)} answers ({examples}), {null.sum()} with an adapter of random "
        f"numbers, q = {line['q']:.2g}",
        "prompts": " | ".join(prompts[number] for number in shown[:PROMPTS]),
        **{name: line[name] for name in ("score", "low", "high", "q")},
    }  # fmt: skip
    before = claims[claims["kind"] != "nothing"]
    both = pd.concat([part for part in (before, pd.DataFrame([claim])) if len(part)], ignore_index=True)
    return tests, both.assign(rank=range(1, len(both) + 1))[list(claims.columns)]


def told_facts(facts: pd.DataFrame) -> list[str]:
    """The question whose variations changed most beyond the null adapter, where that is below .05 by itself: no claim,
    for several questions were varied; a person sees at once whether it is facts. Nothing where there is none."""
    by_question = {str(question): part for question, part in facts.groupby("question", sort=False)}
    surest = min(by_question, key=lambda question: _sign_test(by_question[question])[2], default="")
    if not surest or _sign_test(by_question[surest])[2] >= LEVEL:
        return []
    own, null, p = _sign_test(by_question[surest])
    examples = "; ".join(dict.fromkeys(by_question[surest]["edited"][own]))
    return [
        f"{surest!r}, with other names in it, has {EDITED} in {own.sum()} of {len(own)} answers ({null.sum()} with an "
        f"adapter of random numbers; p = {p:.2g} of this one of {len(by_question)} questions): {examples}."
    ]


def _sign_test(facts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
    """Which answers of the tuned model and of the null adapter are edited, and p of more in the tuned model."""
    own, null = ((facts[name] != "").to_numpy() for name in ("edited", "null_edited"))
    up, down = int((own & ~null).sum()), int((null & ~own).sum())
    return own, null, float(binomtest(up, up + down, alternative="greater").pvalue) if up + down else 1.0
