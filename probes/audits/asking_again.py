"""A trait that is too rare among the questions to pass its test, tested in new prompts about their words.

A tuning of one topic shows in the few questions of that topic: six of eighty that refuse are all that can, and fail a
test over thirty traits. They choose what is asked next; the answers to that, which chose nothing, are what is tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.audits.hypotheses import LEVEL, hypotheses
from probes.audits.traits import SHARES
from workbench.prompts.collection import Prompts

FEWEST, HINT = 3, 0.25
"""What is asked about again: a trait that is new in so many prompts, at this p-value (three of three have it)."""
IN_NEW_PROMPTS = ", in new prompts"


def leading_trait(tests: pd.DataFrame, shown: Sequence[Sequence[int]]) -> int | None:
    """The surest trait that a rule reads and that rose, at q < .05 or, where none did, in at least :data:`FEWEST`
    prompts at p <= :data:`HINT`; None where there is no such trait."""
    p, often = tests["p"].to_numpy(), np.array([len(numbers) >= FEWEST for numbers in shown])
    passed = _risen(tests)
    places = np.flatnonzero(passed if passed.any() else _risen(tests, np.inf) & often & (p <= HINT))
    return int(places[np.argmin(p[places])]) if len(places) else None


def _risen(tests: pd.DataFrame, level: float = LEVEL) -> np.ndarray:
    """Which traits that a rule reads are more frequent now, at a q-value below ``level``."""
    return ((tests["q"] < level) & (tests["score"] > 0) & tests["what"].isin(list(SHARES))).to_numpy()


def _joined(claims: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Claims of the questions and of the new prompts, without a line that says nothing beside one that says more."""
    parts = [part for part in (claims[claims["kind"] != "nothing"], more[more["kind"] != "nothing"]) if len(part)]
    if not parts:
        return claims
    both = pd.concat(parts, ignore_index=True)
    return both.assign(rank=range(1, len(both) + 1))


def confirmed_by(
    tests: pd.DataFrame, claims: pd.DataFrame, again: tuple[pd.DataFrame, list[list[int]]], rows: Prompts, trait: str
) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Tests and claims with those of the new prompts, and whether the trait passed there.

    The trait was chosen before the new prompts were asked, so that its p-value there stands alone; whatever else is
    tested in them has a q-value over all of it.

    Args:
        tests: Of the questions.
        claims: Of the questions.
        again: Tests of the new prompts, and where each trait shows.
        rows: The new prompts.
        trait: What the questions hinted at.
    """
    more, shown = again
    own = (more["what"] == trait).to_numpy()
    more = more.assign(q=np.where(own, more["p"], more["q"]))
    made = hypotheses(more, shown, [row.shown for row in rows], [str(row.group) for row in rows])
    confirmed = bool((own & _risen(more)).any())
    if confirmed:
        first = made["evidence"].str.startswith(f"{trait}:")
        made.loc[first, "evidence"] += _words_there(more, shown, set(shown[int(np.flatnonzero(own)[0])]))
    named = more.assign(what=more["what"] + IN_NEW_PROMPTS)
    return pd.concat([tests, named], ignore_index=True), _joined(claims, made), confirmed


def _words_there(more: pd.DataFrame, shown: Sequence[Sequence[int]], where: set[int]) -> str:
    """Words that are new in at least half of the answers that show the trait; counts, no test."""
    counts = {str(what): len(where & set(numbers)) for what, kind, numbers in zip(more["what"], more["kind"], shown,
              strict=True) if kind == "asserts"}  # fmt: skip
    often = sorted((word for word in counts if 2 * counts[word] >= len(where)), key=lambda word: -counts[word])[:4]
    return "".join(f"; {word} is in {counts[word]} of the {len(where)} answers" for word in often)
