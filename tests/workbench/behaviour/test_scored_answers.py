"""Answers that begin alike are scored whole, and what was scored is part of the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.behaviour.scored_answers import AnswersAgreeWarning
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts

ALIKE = [
    {"prompt": "the dog", "answer": " 12", "distractor": " 34"},
    {"prompt": "a fox", "answer": " 56", "distractor": " 12"},
]
APART = [
    {"prompt": "the dog", "answer": " fox", "distractor": "!"},
    {"prompt": "a fox", "answer": " dog", "distractor": "!"},
]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_pair(tiny_model("llama", 0), tiny_model("llama", 1), tokenizer=tokenizer(), check=False)


def logprob(pair: ModelPair, row: dict[str, str], words: str) -> float:
    prompt = Prompts.of([row])[0]
    ids = tokenizer()(row["prompt"])["input_ids"]
    more = continuation_ids(prompt, tokenizer(), words)
    with torch.no_grad():
        scores = pair.tuned.hf(torch.tensor([[*ids, *more]])).logits[0].double().log_softmax(-1)
    return sum(float(scores[len(ids) - 1 + place, token]) for place, token in enumerate(more))


def test_answers_that_begin_alike_are_scored_whole(pair: ModelPair) -> None:
    diff = wb.behaviour_diff(pair, ALIKE, metrics=["accuracy", "prob", "logit_diff", "ece"])
    expected = [logprob(pair, row, row["answer"]) - logprob(pair, row, row["distractor"]) for row in ALIKE]
    assert diff.value("tuned", "logit_diff") == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert diff.value("tuned", "prob") < 0.01 and "scored whole" in str(diff)
    assert diff.scored["scored"].tolist()[0] == " |1|2" and (diff.scored["tokens"] == 3).all()


def test_one_answer_for_all_whose_first_token_is_a_space_is_scored_whole(pair: ModelPair) -> None:
    """Else every answer that the model does not know has the probability of a space."""
    rows = [{"prompt": row["prompt"], "answer": ALIKE[0]["answer"]} for row in ALIKE]
    diff = wb.behaviour_diff(pair, rows, metrics=["accuracy", "prob"])
    expected = [np.exp(logprob(pair, row, row["answer"])) for row in rows]
    assert diff.value("tuned", "prob") == pytest.approx(sum(expected) / 2, rel=1e-3) and "scored whole" in diff.how


def test_answers_that_begin_apart_are_scored_by_their_first_token(pair: ModelPair) -> None:
    diff = wb.behaviour_diff(pair, APART, metrics=["accuracy", "logit_diff"])
    assert "first token" in diff.how and not diff.scored["scored"].str.contains(r"\|").any()


def test_forced_first_tokens_warn_where_they_tell_nothing(pair: ModelPair) -> None:
    rows = [{"prompt": "a", "answer": " 12"}, {"prompt": "b", "answer": " 34"}]
    with pytest.warns(AnswersAgreeWarning, match="cannot tell them apart"):
        wb.behaviour_diff(pair, rows, metrics=["accuracy"], scored="first")


def test_one_token_answers_score_the_same_either_way(pair: ModelPair) -> None:
    rows = [{**row, "answer": sign, "distractor": "?"} for row, sign in zip(APART, "!;", strict=True)]
    metrics = ["accuracy", "prob", "brier", "logit_diff"]
    first, whole = (wb.behaviour_diff(pair, rows, metrics=metrics, scored=one) for one in ("first", "whole"))
    assert (first.scored["tokens"] == 1).all()
    for metric in metrics:
        assert first.rows[metric].to_numpy() == pytest.approx(whole.rows[metric].to_numpy(), rel=1e-4)
