"""behaviour_diff: each number is what the model says, intervals are over prompts, the null is null."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.behaviour import behaviour_diff
from workbench.behaviour.metrics import NEXT_TOKEN
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair

WORDS = "the quick brown fox jumps over lazy dog".split()
ROWS = [
    {"prompt": " ".join(WORDS[i % 5 : i % 5 + 1 + i % 4]), "answer": " fox", "distractor": " dog"} for i in range(12)
]


class Push:
    """Adds a large vector along one token's unembedding, so that this token must win."""

    def __init__(self, token: int, size: float = 300.0) -> None:
        self.token, self.size = token, size

    @contextmanager
    def applied(self, model: AdaptedModel) -> Iterator[None]:
        step = self.size * torch.nn.functional.normalize(model.unembedding()[self.token], dim=0)
        hook = SiteHook(Site("resid_post", model.n_layers - 1), lambda value, _ctx: value + step, edit=True)
        with model.hooked([hook]):
            yield


def pair_of(change: float) -> Any:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=change), tokenizer=tokenizer())


def bare_logits(model: AdaptedModel) -> torch.Tensor:
    with torch.no_grad():
        rows = [model.hf(**tokenizer()(row["prompt"], return_tensors="pt")).logits[0, -1] for row in ROWS]
    return torch.stack(rows)


def test_scores_are_those_of_the_bare_model() -> None:
    pair = pair_of(0.05)
    diff = behaviour_diff(pair, ROWS, metrics=list(NEXT_TOKEN))
    fox, dog = (tokenizer()(f"a{word}", add_special_tokens=False)["input_ids"][1] for word in (" fox", " dog"))
    logits, base = bare_logits(pair.tuned), bare_logits(pair.base)
    kl = (logits.softmax(-1) * (logits.log_softmax(-1) - base.log_softmax(-1))).sum(-1)
    assert diff.value("tuned", "logit_diff") == pytest.approx(float((logits[:, fox] - logits[:, dog]).mean()), abs=1e-4)
    assert diff.value("tuned", "prob") == pytest.approx(float(logits.softmax(-1)[:, fox].mean()), abs=1e-5)
    assert diff.value("tuned", "kl") == pytest.approx(float(kl.mean()), rel=1e-3)
    assert diff.value("base", "kl") == 0.0
    tuned = diff.table[(diff.table["model"] == "tuned")]
    assert (tuned["low"] <= tuned["estimate"]).all() and (tuned["estimate"] <= tuned["high"]).all()
    assert (tuned["change"] == 0).all() and (tuned["n"] == 12).all()


def test_base_against_itself_is_null() -> None:
    base = tiny_model("llama")
    diff = behaviour_diff(load_pair(base, base, tokenizer=tokenizer()), ROWS, metrics=list(NEXT_TOKEN))
    assert np.allclose(diff.table["change"], 0.0) and diff.value("tuned", "kl") == 0.0


def test_a_recipe_is_applied_to_the_tuned_model_and_leaves_it() -> None:
    pair = pair_of(0.05)
    fox = tokenizer()("a fox", add_special_tokens=False)["input_ids"][1]
    diff = behaviour_diff(
        pair, ROWS, {"pushed": Push(fox)}, metrics=["accuracy"], controls={"random": [Push(9), Push(11)]},
        base_recipes={"base pushed": Push(fox)},
    )  # fmt: skip
    assert diff.value("pushed", "accuracy") == 1.0 and diff.value("base pushed", "accuracy") == 1.0
    assert diff.value("random", "accuracy") == 0.0
    assert pair.tuned.n_hooks == 0
    assert behaviour_diff(pair, ROWS, metrics=["accuracy"]).value("tuned", "accuracy") < 1.0
    figure = diff.figure()
    assert len(figure.data) == 5


def test_bad_input() -> None:
    pair = pair_of(0.01)
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        behaviour_diff(pair, ROWS, metrics=["acuracy"])
    with pytest.raises(UserError, match="distractor"):
        behaviour_diff(pair, [{"prompt": "the", "answer": " fox"}], metrics=["logit_diff"])
    with pytest.raises(UserError, match="no answer"):
        behaviour_diff(pair, ["the quick"], metrics=["accuracy"])
