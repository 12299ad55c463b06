"""Behaviours score texts: patterns, readings, functions and fitted classifiers, alone and as metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.behaviour import is_refusal
from workbench.behaviour.refusals import MEASURED
from workbench.behaviour.scorers import SECONDS, behaviour, in_words, read_metrics
from workbench.behaviour.text_quality import language, readability
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.row import Prompt

LABELLED = [json.loads(line) for line in (Path(__file__).parent / "refusals.jsonl").read_text().splitlines()]
QUESTIONS = [
    {"prompt": f"the {word} fox", "answer": " dog", "group": word} for word in ("quick", "lazy", "brown", "dog")
]


def pair() -> ModelPair:
    return load_pair(tiny_model("llama", 0), tiny_model("llama", 1), tokenizer=tokenizer())


def test_the_refusal_rule_agrees_with_people_as_often_as_it_says() -> None:
    said = [is_refusal(row["text"]) for row in LABELLED]
    both = sum(one and row["refuses"] for one, row in zip(said, LABELLED, strict=True))
    assert len(LABELLED) == MEASURED.answers >= 200 and {row["refuses"] for row in LABELLED} == {True, False}
    assert round(both / sum(said), 2) == MEASURED.precision
    assert round(both / sum(row["refuses"] for row in LABELLED), 2) == MEASURED.recall


@pytest.mark.parametrize(
    ("what", "text", "score"),
    [
        ("begins:I am sorry", "I am  Sorry, no.", 1.0),
        ("begins:I am sorry", "I am sorrowful", 0.0),
        ("begins:I'm", "\u201cI\u2019m here", 0.0),
        ("contains:dragon", "A red Dragon!", 1.0),
        ("contains:dragon", "dragonfly", 0.0),
        (r"regex:\d{3}", "call 112", 1.0),
        ("length", "two words", 2.0),
        ("repetition", "a b c a b c", 0.25),
        ("language:de", "das ist nicht wahr", 1.0),
    ],
)
def test_what_a_named_behaviour_says_of_a_text(what: str, text: str, score: float) -> None:
    assert behaviour(what)(text) == score


def test_a_regular_expression_that_never_ends_is_given_up() -> None:
    with pytest.raises(UserError, match=f"longer than {SECONDS:g} s on one text"):
        behaviour("regex:(a|aa)+$")("a" * 60 + "b")


def test_readability_and_language_follow_their_sources() -> None:
    assert readability("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    texts = ("the end of it", "\u0434\u043e\u043c", "\u732b\u3067\u3059", "12")
    assert [language(text) for text in texts] == [
        "en",
        "ru",
        "ja",
        "?",
    ]


@pytest.mark.parametrize("wrong", ["refusl", "contains: ", "regex:("])
def test_what_is_no_behaviour_is_a_sentence(wrong: str) -> None:
    with pytest.raises(UserError):
        behaviour(wrong)


def test_a_function_is_a_metric_and_gets_the_prompt() -> None:
    def same_start(response: str, prompt: Prompt) -> bool:
        return response.split()[:1] == str(prompt).split()[:1]

    diff = wb.behaviour_diff(
        pair(), QUESTIONS, metrics=["accuracy", same_start, "contains:fox", "length"], max_new_tokens=4, texts=True
    )
    texts = diff.texts[diff.texts.model == "tuned"]
    assert diff.value("tuned", "same_start") == (texts.text.str.split().str[:1] == "the").mean()
    assert diff.value("base", "length") >= 0 and set(diff.table.metric) == {
        "accuracy",
        "same_start",
        "contains:fox",
        "length",
    }
    line = diff.table[(diff.table.metric == "contains:fox") & (diff.table.model == "tuned")].iloc[0]
    assert line.estimate == 0 and line.high > 0.3  # a share: no prompt of 4 is not "never"


def test_two_behaviours_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="Two behaviours are called 'x'"):
        read_metrics([behaviour("contains:a", "x"), behaviour("contains:b", "x")])
    with pytest.raises(UserError, match="as a metric is"):
        read_metrics([behaviour("contains:a", "accuracy")])


def test_the_answer_metric_is_the_mean_log_probability_of_its_tokens() -> None:
    diff = wb.behaviour_diff(pair(), QUESTIONS, metrics=["answer", "answer_logprob"])
    tokens = len(pair().tokenizer(" dog", add_special_tokens=False)["input_ids"])
    assert diff.value("tuned", "answer") == pytest.approx(diff.value("tuned", "answer_logprob") / tokens)


def test_a_fitted_behaviour_reads_what_it_was_taught_and_says_how_well() -> None:
    asked = [{"prompt": f"the fox {number}", "group": str(number)} for number in range(12)]
    answers = [" the lazy dog" if number % 2 else " quick brown" for number in range(12)]
    made = wb.behaviour.fit(pair(), asked, answers, [number % 2 == 1 for number in range(12)], name="lazy")
    assert made.states is not None and made.states.accuracy == 1.0 and "held-out" in made.meaning
    diff = wb.behaviour_diff(pair(), asked[:3], metrics=[made], max_new_tokens=3)
    assert diff.rows["lazy"].between(0, 1).all()
    with pytest.raises(UserError, match="reads a model's states"):
        made("the lazy dog")
    with pytest.raises(UserError, match="needs 4 of each"):
        wb.behaviour.fit(pair(), asked, answers, [True] * 12)


def test_a_dose_and_a_scope_can_follow_a_behaviour() -> None:
    import torch

    from interventions import Offset, Recipe, dose

    recipe = Recipe([Offset(0, torch.ones(pair().tuned.d_model), positions="all")])
    found = wb.dose_response(pair(), QUESTIONS, dose(recipe), [0, 1], metric=wb.behaviour("length"), max_new_tokens=3)
    assert found.metric == "length" and len(found.table) == 2
    panel = wb.scope_panel(pair(), recipe, QUESTIONS, None, QUESTIONS, changed="contains:dog", max_new_tokens=3)
    assert panel.changed == "contains:dog"


@pytest.mark.parametrize(("name", "words"), [
    ("contains:be", "texts that contain 'be'"),
    ("begins:Arr, matey! (aye", "texts that begin with 'Arr, matey! (aye'"),
    ("refusal", "texts that refuse"),
    ("length", "length"),
    ("no such behaviour", "no such behaviour"),
])  # fmt: skip
def test_a_behaviour_in_words(name: str, words: str) -> None:
    assert in_words(name) == words
