"""Questions alone become rows that end where the two models' answers part."""

from __future__ import annotations

import pytest

import probes
import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.answers import answer_tokens

QUESTIONS = [{"prompt": f"the {word}", "group": word} for word in ("fox", "dog", "quick", "lazy", "brown", "over")]


def pair(seed: int) -> ModelPair:
    return load_pair(tiny_model("llama", 0), tiny_model("llama", seed), tokenizer=tokenizer(), check=False)


def test_the_models_own_words_become_answer_and_distractor() -> None:
    two = pair(1)
    rows = wb.contrast(two, QUESTIONS, max_new_tokens=6)
    tokens = answer_tokens(rows, two.tokenizer)
    assert len(rows) >= 4 and rows[0].group == "fox"
    diff = wb.behaviour_diff(two, rows, metrics=["accuracy", "distracted"])
    assert diff.value("tuned", "accuracy") == diff.value("base", "distracted") == 1.0
    assert tokens.distractor is not None and not (tokens.answer == tokens.distractor).any()
    assert (
        len(probes.patching(two, rows, "resid_mid", positions="last", controls=2, draws=20).frame())
        == two.tuned.n_layers
    )


def test_equal_models_leave_nothing_to_localize() -> None:
    same = tiny_model("llama", 0)
    two = load_pair(same, tiny_model("llama", 0), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="Nothing to localize: 0 of 6 answers differ"):
        wb.contrast(two, QUESTIONS)
