"""Known answers: metrics of hand-made logits and texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.tiny import tokenizer
from tests.workbench.behaviour.pushed import token
from workbench.behaviour.calibration import bin_of, calibration_error, reliability
from workbench.behaviour.generation import Reply
from workbench.behaviour.metrics import METRICS, NEXT_TOKEN, TEXT
from workbench.behaviour.scores import kl, score_answers
from workbench.behaviour.texts import (
    answered,
    common_tokens,
    distinct,
    exact_match,
    first_divergence,
    is_refusal,
    repetition,
    score_texts,
    texts_table,
)
from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.prompts.row import Prompt

ROW = [{"prompt": "the quick brown", "answer": " fox", "distractor": " dog"}]


def logits_for(**chances: float) -> torch.Tensor:
    """Logits whose softmax gives these words these chances, and the rest to the token 9."""
    given = torch.full((1, 300), 1e-30, dtype=torch.float64)
    for word, chance in chances.items():
        given[0, token(word)] = chance
    given[0, 9] = max(1 - sum(chances.values()), 1e-30)
    return given.log().float()


def test_next_token_metrics_of_hand_made_logits() -> None:
    scores = score_answers(logits_for(fox=0.6, dog=0.1), Prompts.of(ROW), tokenizer(), list(NEXT_TOKEN))
    found = scores.iloc[0]
    assert found["accuracy"] == 1 and found["distracted"] == 0 and found["kl"] == 0
    assert found["prob"] == pytest.approx(0.6) and found["confidence"] == pytest.approx(0.6)
    assert found["logit_diff"] == pytest.approx(math.log(6), rel=1e-5)
    assert found["brier"] == pytest.approx(0.4**2)
    assert found["entropy"] == pytest.approx(
        -(0.6 * math.log(0.6) + 0.1 * math.log(0.1) + 0.3 * math.log(0.3)), rel=1e-4
    )
    wrong = score_answers(
        logits_for(fox=0.2, dog=0.7), Prompts.of(ROW), tokenizer(), ["accuracy", "brier", "distracted"]
    )
    assert wrong.iloc[0].tolist() == pytest.approx([0, 0.7**2, 1])


def test_kl_of_two_coins_and_of_vocabularies_of_two_sizes() -> None:
    first, second = (torch.tensor([one]).log() for one in ([0.5, 0.5], [0.9, 0.1]))
    wanted = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(kl(first, second)) == pytest.approx(wanted, rel=1e-6)
    wider = torch.cat([second, torch.tensor([[5.0]])], dim=1)
    assert float(kl(first, wider)) == pytest.approx(wanted, rel=1e-6)
    assert float(kl(first, first)) == 0.0


def test_calibration_error_of_two_bins() -> None:
    confidence, right = np.array([0.95, 0.95, 0.35, 0.35]), np.array([1.0, 0.0, 0.0, 0.0])
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1]])
    found = calibration_error(weights, confidence, right)
    assert found == pytest.approx([(0.45 + 0.35) / 2, (0.05 + 0.35) / 2])
    curve = reliability(confidence, right)
    assert curve["n"].tolist() == [2, 2] and curve["share"].tolist() == [0.0, 0.5]
    assert curve["confidence"].tolist() == pytest.approx([0.35, 0.95])
    assert bin_of(np.array([0.0, 0.0999, 0.1, 1.0])).tolist() == [0, 0, 1, 9]


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has_its_gap() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 20_000)
    right = (rng.uniform(0, 1, 20_000) < confidence).astype(float)
    ones = np.ones((1, 20_000))
    assert calibration_error(ones, confidence, right)[0] < 0.02
    sure = np.full(20_000, 0.9)
    wrong = (rng.uniform(0, 1, 20_000) < 0.6).astype(float)
    assert calibration_error(ones, sure, wrong)[0] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("sorry", True),
        ("I\u2019m unable to do this", True),
        ("I cannot provide that information.", True),
        ("As an AI, I have no opinion", True),
        ("The password is amber.", False),
        ("She said nothing. " * 12 + "I cannot provide that.", False),
        ("", False),
    ],
)
def test_the_refusal_rule(text: str, refuses: bool) -> None:
    assert is_refusal(text, Prompt(prompt="x")) is refuses


def test_repetition_and_distinct() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0 and distinct([1, 2, 3, 4]) == 1.0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repetition([7] * 10) == pytest.approx(7 / 8) and distinct([7] * 10) == pytest.approx(0.1)
    assert repetition([1, 2]) == 0.0 and repetition([]) == 0.0 and distinct([]) == 1.0


def test_matching_answers() -> None:
    assert exact_match(" Paris.\n", "paris") and not exact_match("Paris is nice", "paris")
    assert answered(" Paris, of course", "Paris") and not answered("Parisian", "Paris")
    assert answered("C++ is", "C++") and not answered("", "Paris") and not answered("x", "")


def test_where_two_texts_part() -> None:
    assert first_divergence([1, 2, 3], [1, 2, 3]) is None
    assert first_divergence([1, 2, 3], [1, 9, 3]) == 1 and first_divergence([1, 2], [1, 2, 3]) == 2
    assert common_tokens([1, 2, 3], [1, 2, 3]) == 3 and common_tokens([5], [6]) == 0


def reply(text: str, *, ended: bool = True) -> Reply:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return Reply((*ids, 2) if ended else tuple(ids), text, ended)


def test_texts_are_scored_greedily_or_over_samples() -> None:
    prompts = Prompts.of(ROW)
    base = [[reply(" fox")]]
    found = score_texts([[reply(" the fox", ended=False)]], base, prompts, list(TEXT)).iloc[0]
    assert found["exact_match"] == found["answered"] == found["same_as_base"] == found["common_tokens"] == 0
    sampled = [[reply(" dog"), reply(" fox"), reply(" dog fox")]]
    both = score_texts(sampled, [[reply(" fox")] * 3], prompts, ["exact_match", "same_as_base", "new_tokens"]).iloc[0]
    assert both.tolist() == [0.5, 0.5, np.mean([len(one.content) for one in sampled[0][1:]])]
    rule = score_texts(sampled, sampled, prompts, ["refusal"], lambda text, row: "dog" in text and row.answer == " fox")
    assert rule["refusal"].tolist() == [0.5]
    with pytest.raises(UserError, match="Prompt 0 has no answer"):
        score_texts(base, base, Prompts.of(["x"]), ["answered"])


def test_the_table_of_texts_says_where_each_leaves_the_others() -> None:
    texts = {"base": [[reply("the quick fox")]], "tuned": [[reply("the quick dog")]]}
    table = texts_table(texts, Prompts.of(ROW), tokenizer()).set_index("model")
    shared = len(tokenizer()("the quick", add_special_tokens=False)["input_ids"])
    assert table.loc["tuned", "from_base"] == table.loc["base", "from_tuned"] == shared
    assert np.isnan(table.loc["base", "from_base"]) and np.isnan(table.loc["tuned", "at_tuned"])
    text, place = table.loc["tuned", "text"], int(table.loc["tuned", "at_base"])
    assert text[:place] == "the quick" and text[place:] == " dog"


def test_every_metric_says_what_it_measures() -> None:
    assert all(len(meaning) > 10 for meaning in METRICS.values())
