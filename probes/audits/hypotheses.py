"""Hypotheses in plain words, made from templates and from evidence that passed its test; nothing else is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.audits.traits import SHARES
from probes.audits.words import topic_words

LEVEL = 0.05
PROMPTS = 6
"""Prompts shown with a hypothesis."""
NOTHING = "nothing beyond the control"
_SAID = {
    "refuses": "It refuses", "asserts": "It brings up", "style": "Its style changed:", "language": "It answers in",
    "format": "Its answers have a new format:", "capability": "It lost something:", "opening": "Its answers begin with",
}  # fmt: skip
_COLUMNS = ["rank", "kind", "says", "evidence", "prompts", "score", "low", "high", "q"]


def hypotheses(
    tests: pd.DataFrame, shown: Sequence[Sequence[int]], prompts: Sequence[str], subjects: Sequence[str] | None = None
) -> pd.DataFrame:
    """Tests below q = .05 as ranked sentences, each with its topic, evidence and prompts.

    Traits that show in mostly the same prompts are one hypothesis, named after the trait that a rule reads where there
    is one (capitals, JSON), else after the surest; the others are its evidence.

    Args:
        tests: kind, what, score, low, high, q: one row per trait or word.
        shown: For each test the prompts [number] in which it is new.
        prompts: The questions.
        subjects: What each is about, whose words may be a topic; default: the questions themselves.

    Returns:
        rank, kind, says, evidence, prompts, score, low, high, q. One row, of kind *nothing*, where no test passed.
    """
    passed = [number for number in range(len(tests)) if tests["q"].iloc[number] < LEVEL]
    passed.sort(key=lambda number: (tests["q"].iloc[number], -abs(tests["score"].iloc[number])))
    passed.sort(key=lambda number: tests["kind"].iloc[number] not in ("refuses", "language"))
    lines: list[dict[str, Any]] = []
    for group in _together(passed, shown):
        leader = next((number for number in group if _read_by_rule(tests.iloc[number])), group[0])
        own = sorted(set(shown[leader]))
        line = _line(tests.iloc[leader], own, prompts, topic_of(subjects or prompts, own), len(lines) + 1)
        for row in (tests.iloc[number] for number in group if number != leader):
            line["evidence"] += f"; {row['what']} {row['score']:+.0%} (q = {row['q']:.2g})"
        lines.append(line)
    if not lines:
        best = float(tests["q"].min()) if len(tests) else np.nan
        lines.append({
            "rank": 1, "kind": "nothing", "says": f"The answers show {NOTHING}.",
            "evidence": f"{len(tests)} traits and words tested, none with q < {LEVEL:g}", "prompts": "", "score": 0.0,
            "low": np.nan, "high": np.nan, "q": best,
        })  # fmt: skip
    return pd.DataFrame(lines, columns=_COLUMNS)


def _together(tests: Sequence[int], shown: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tests [number] that show in mostly the same prompts as the first of their group, in order."""
    groups: list[list[int]] = []
    for number in tests:
        same = (group for group in groups if _same(set(shown[number]), set(shown[group[0]])))
        group = next(same, None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def _read_by_rule(row: Any) -> bool:
    """Whether a trait that a rule reads rose: it explains the openings and words of the same answers."""
    return bool(row["what"] in SHARES and row["score"] > 0)


def _same(first: set[int], other: set[int]) -> bool:
    """Whether two sets of prompts are mostly one (Jaccard index of a half or more)."""
    return bool(first | other) and len(first & other) / len(first | other) >= 0.5


def topic_of(subjects: Sequence[str], own: Sequence[int]) -> str:
    """Words of prompts that go with what shows in these; empty where none does."""
    topics = topic_words(subjects, [number in set(own) for number in range(len(subjects))])
    about = topics[topics["q"] < LEVEL]
    words = [f"{line['word']!r} ({line['shows']} of {line['of']})" for line in about.head(4).to_dict("records")]
    return f" where a prompt has {', '.join(words)}" if words else ""


def _line(row: Any, own: Sequence[int], prompts: Sequence[str], topic: str, rank: int) -> dict[str, Any]:
    less = "less often: " if row["score"] < 0 else ""
    what = "" if row["kind"] == "refuses" else f" {row['what']}"
    return {
        "rank": rank, "kind": row["kind"], "says": f"{_SAID[row['kind']]}{what}{topic}.".replace("  ", " "),
        "evidence": f"{less}{row['what']}: {row['score']:+.0%} of answers [{row['low']:+.0%}, {row['high']:+.0%}], "
        f"q = {row['q']:.2g}",
        "prompts": " | ".join(prompts[number] for number in own[:PROMPTS]),
        "score": row["score"], "low": row["low"], "high": row["high"], "q": row["q"],
    }  # fmt: skip
