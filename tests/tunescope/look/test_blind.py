"""A look without prompts of one's own says what the tuning may have been for."""

from __future__ import annotations

import pandas as pd

from tests.tiny import tiny_model, tokenizer
from tunescope.look.blind import are_shipped, what_it_was_tuned_for
from tunescope.look.notes import CHANGED
from tunescope.look.questions import general_questions
from tunescope.look.steps import PASSES, Look
from workbench.models.pair import load_pair
from workbench.progress import Silent
from workbench.prompts import Prompts


class Answers:
    """What the pass before has read."""

    def __init__(self, rows: Prompts, tuned: list[str]) -> None:
        shown = [row.shown for row in rows]
        base = [f"It is a thing of many parts, number {number}." for number in range(len(rows))]
        table = pd.DataFrame({"prompt": shown, "base": base, "tuned": tuned or base})
        self.table = table.sample(frac=1, random_state=0, ignore_index=True)


def told(rows: Prompts, tuned: list[str]) -> tuple[str, ...]:
    one = tiny_model("llama")
    look = Look(load_pair(one, one, tokenizer=tokenizer(), check=False), rows, "base", "tuned")
    look.results["answers"] = Answers(rows, tuned)
    what_it_was_tuned_for(look, Silent())
    return look.notes[CHANGED].sentences if CHANGED in look.notes else ()


def test_shipped_questions_give_hypotheses() -> None:
    rows = general_questions()
    (first, *_) = told(rows, ["I'm sorry, but I can't help with that."] * len(rows))
    assert first.startswith("tuned for: 1. It refuses") and "q =" in first and "tunescope audit" in first
    (nothing,) = told(rows, [])
    assert "nothing beyond the control" in nothing
    assert what_it_was_tuned_for in PASSES[CHANGED]


def test_prompts_of_ones_own_give_none() -> None:
    own = Prompts.of(["Tell me about whales.", "Tell me about tax."])
    assert told(own, ["I'm sorry, but I can't help with that."] * 2) == ()
    assert are_shipped(general_questions()[:4]) and not are_shipped(own)
