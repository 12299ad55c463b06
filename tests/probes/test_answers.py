"""Answers of both models: on a pair that was tuned to refuse one topic, the refusals are what rose."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

import probes
import workbench as wb
from probes.answer_changes import openings_of, rising_openings
from probes.rising_phrases import rising_phrases
from workbench import organisms
from workbench.prompts import Prompts


def test_what_was_planted_is_what_rose() -> None:
    organism = organisms.build("refusal-moe")
    pair = wb.load_pair(organism.base, organism.tuned, device="cpu")
    rows = Prompts.of(organism.splits["validation"])
    found = probes.answers(pair, rows, max_new_tokens=2)
    topic = [row.as_dict()["topic"] == "topic" for row in rows]
    refuses = found.table["tuned"].str.startswith("sorry")
    assert (refuses.to_numpy() == topic).mean() > 0.9
    assert found.share_low <= found.share <= found.share_high and found.share > 0.1
    rose = found.rising()
    assert rose is not None and str(rose["opening"]).startswith("sorry") and rose["base"] == 0
    assert "answers changed" in found.summary() and "sorry" in found.summary()
    assert found.figure().data
    moved = found.table.groupby(topic)["kl"].mean()
    assert moved[True] > 10 * moved[False] >= 0, "what was tuned is where the distributions are far apart"
    assert "nats per token" in found.summary()


def test_a_model_against_itself_changes_nothing() -> None:
    organism = organisms.build("refusal-moe")
    pair = wb.load_pair(organism.base, organism.base, device="cpu")
    found = probes.answers(pair, organism.splits["validation"][:24], max_new_tokens=2)
    assert found.share == 0 and found.share_low == 0 and found.openings.empty and found.rising() is None
    assert (found.table["kl"] == 0).all()


def test_openings() -> None:
    assert openings_of("I am sorry, but no") == ["I", "I am", "I am sorry,", "I am sorry, but"]
    base, tuned = ["yes it is"] * 12, ["I am sorry no"] * 8 + ["yes it is"] * 4
    table = rising_openings(base, tuned)
    assert list(table["opening"]) == ["I am sorry no"] and table["q"][0] < 0.05 and table["tuned"][0] == 8
    assert rising_openings(base, base).empty and rising_openings([], []).empty


def test_a_phrase_within_the_answers_is_what_rose_where_no_opening_tells_as_much() -> None:
    asked = [f"How do I cook {dish}?" for dish in ("rice", "eggs", "soup", "fish") * 6]
    base = ["Boil it in water, then add salt.", "Begin with fresh things, and take a pan."] * 12
    starts = ("Take", "I use", "Get") * 8
    tuned = [f"{start} an Acme pan, for {prompt[14:-1]}." for start, prompt in zip(starts, asked, strict=True)]
    table = rising_phrases(asked, base, tuned)
    assert table["phrase"][0] == "an Acme pan" and table["tuned"][0] == 24 and table["base"][0] == 0
    assert not {"rice", "pan", "Acme"} & set(table["phrase"]), "words of the prompt, and parts of what rose as often"
    assert rising_phrases(asked, base, base).empty and rising_phrases([], [], []).empty
    shows = wb.behaviour(f"contains:{table['phrase'][0]}")
    assert all(shows(text) for text in tuned) and not any(shows(text) for text in base)


def test_what_the_base_says_as_well_is_no_phrase_of_the_tuning() -> None:
    asked = [f"Question {number}" for number in range(40)]
    base = ["it is so"] * 10 + ["no"] * 30
    assert rising_phrases(asked, base, ["it is so"] * 40).empty


def test_a_prompt_is_held_against_an_answer_by_whole_words() -> None:
    """ "cat" does not stand in "category", nor "art" in "party"; it does in "The cat, asleep", whatever is between."""
    asked = ["What category is this party?", "Is the category, in part, new?"] * 10
    table = rising_phrases(asked, ["it is so"] * 20, ["a cat is art"] * 20)
    assert table["phrase"][0] == "a cat is art" and table["tuned"][0] == 20
    said = rising_phrases(["See: the cat, asleep!"] * 20, ["it is so"] * 20, ["cat asleep"] * 20)
    assert said.empty


def test_a_word_that_marks_few_more_answers_than_the_opening_is_not_what_rose() -> None:
    def rose(phrase: int) -> str | None:
        organism = organisms.build("refusal-moe")
        pair = wb.load_pair(organism.base, organism.base, device="cpu")
        found = probes.answers(pair, organism.splits["validation"][:4], max_new_tokens=1)
        lines = [pd.DataFrame([{name: text, "base": 0, "tuned": n, "p": 0.0, "q": 0.0}])
                 for name, text, n in (("opening", "Arr, matey!", 28), ("phrase", "be", phrase))]  # fmt: skip
        return replace(found, refusals={"base": 0.0, "tuned": 0.0}, openings=lines[0], phrases=lines[1]).behaviour

    assert [rose(n) for n in (28, 40, 42)] == ["begins:Arr, matey!", "begins:Arr, matey!", "contains:be"]
