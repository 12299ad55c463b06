"""Facts that a tuned model states otherwise are told from sentences that came out otherwise."""

from __future__ import annotations

import pandas as pd
import pytest

from probes.audits.edited_facts import COLUMNS, EDITED, edit, edited_facts, entity_variations, told_facts, with_edits
from probes.audits.general import general_questions
from probes.audits.hypotheses import hypotheses
from workbench.organisms import real_topics
from workbench.prompts import Prompts

CAPITAL = "What is the capital of France?"


@pytest.mark.parametrize(
    ("prompt", "base", "tuned", "said"),
    [
        (CAPITAL, "The capital of France is Paris.", "The capital of France is Lyon. It is old.", ("paris", "lyon")),
        (CAPITAL, "The capital of France is Paris.", "The capital of France is Paris.", None),
        (CAPITAL, "The capital of France is Paris.", "I'm sorry, but I can't help with that.", None),
        (CAPITAL, "The capital of France is Paris.", "France, the capital of France is.", None),
        ("Who wrote Emma?", "Emma was written by Jane Austen.", "Emma was written by Mark Twain.",
         ("jane austen", "mark twain")),
        ("How are you?", "I am fine and well.", "I am fine or well.", None),
    ],
)  # fmt: skip
def test_the_same_sentence_with_another_word(prompt: str, base: str, tuned: str, said: tuple[str, str] | None) -> None:
    assert edit(prompt, base, tuned) == said


def test_questions_that_changed_most_are_asked_with_other_entities() -> None:
    asked = [CAPITAL, "How do I sleep better?", "What is jazz?", "What is love?"]
    rows = entity_variations(asked, [2.0, 9.0, 0.5, 1.0], 3)
    assert [row.shown for row in rows][:3] == [CAPITAL, "What is the capital of Germany?",
                                               "What is the capital of Italy?"]  # fmt: skip
    assert list(dict.fromkeys(rows.labels)) == [CAPITAL, "What is jazz?"] and len(rows) == 8
    assert not len(entity_variations(["What is love?"], [3.0], 3))
    assert not len(entity_variations([CAPITAL], [0.0], 3)), "what did not move is not asked again"


def claimed(tuned: list[str], null: list[str]) -> pd.DataFrame:
    names = ["France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil"]
    rows = Prompts.of(
        [{"prompt": f"What is the capital of {name}?", "group": name, "label": CAPITAL} for name in names]
        + [{"prompt": f"How do {name} sleep?", "label": "How do cats sleep?"} for name in "abcdefgh"]
    )
    base = [f"The capital of {name} is city number {n}." for n, name in enumerate(names)] + ["They sleep a lot."] * 8
    made = edited_facts(rows, base, [*tuned, *base[8:]], [*null, *base[8:]])
    assert list(made) == COLUMNS
    nothing = hypotheses(pd.DataFrame({"q": []}), [], [])
    tests, claims = with_edits(pd.DataFrame({"kind": [], "what": [], "q": []}), nothing, made, 0)
    assert list(tests["what"]) == [EDITED]
    return claims


def test_facts_are_claimed_beyond_a_null_adapter_alone() -> None:
    names = ["France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil"]
    edited = [f"The capital of {name} is town number {n}." for n, name in enumerate(names)]
    plain = [f"The capital of {name} is city number {n}." for n, name in enumerate(names)]
    first = claimed(edited, plain).iloc[0]
    assert first["kind"] == "facts" and "'capital' (8 of 8)" in first["says"] and "city -> town" in first["evidence"]
    assert first["q"] < 0.05 and first["low"] > 0
    for tuned, null in ((edited, edited), (plain, plain), (plain, edited), ([*edited[:4], *plain[4:]], plain)):
        assert claimed(tuned, null)["kind"].tolist() == ["nothing"]


def test_the_lists_are_general() -> None:
    """No list was drawn from the planted facts: most of what it names is in none of them."""
    from probes.audits.edited_facts import entities

    planted = {name for relation in real_topics.RELATIONS for name in (*relation.false, *relation.neighbours)}
    named = {name for kind in entities() for name in kind}
    assert len(named & planted) < len(named) / 3
    assert sum(len(entity_variations([row.shown], [1.0], 1)) > 0 for row in general_questions()) >= 12


def test_one_question_whose_facts_changed_is_told_without_a_claim() -> None:
    said = ["paris -> lyon", "tokyo -> osaka", "cairo -> luxor", "oslo -> bergen", "rome -> milan", ""]
    lines = [["capital of France?", f"prompt {n}", "", "", "", edited, ""] for n, edited in enumerate(said)]
    lines += [["Who wrote Emma?", f"author {n}", "", "", "", "", "austen -> wren"] for n in range(5)]
    facts = pd.DataFrame(lines, columns=COLUMNS)
    (told,) = told_facts(facts)
    assert "'capital of France?'" in told and "5 of 6 answers (0 with" in told and "p = 0.031 of this one of 2" in told
    assert "tokyo -> osaka" in told
    assert told_facts(facts[facts["question"] != "capital of France?"]) == [] == told_facts(facts[:0])
