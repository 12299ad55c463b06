"""The same prompt many times over is one observation: it makes nothing significant and no interval narrow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probes import activation_delta, head_probe, patching
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import load_pair
from workbench.behaviour import behaviour_diff
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.recording.record_pair import record

WORDS = "the quick brown fox jumps over lazy dog".split()
ONE = {"prompt": "the quick brown fox", "answer": "dog", "distractor": "fox"}


def different(count: int) -> list[dict[str, Any]]:
    return [{**ONE, "prompt": f"{WORDS[i % 8]} {WORDS[i // 2 % 8]} {WORDS[i // 3 % 8]} {i}"} for i in range(count)]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.3), tokenizer=tokenizer())


def test_copies_of_one_prompt_find_nothing_where_as_many_prompts_do(pair: ModelPair) -> None:
    where: dict[str, Any] = {"sites": "heads", "positions": "last", "source": "tuned", "target": "base", "what": "z"}
    options = {**where, "normalise": False}
    alike = [{**ONE, "prompt": f"{word} {ONE['prompt']}"} for word in [*WORDS, *(2 * word for word in WORDS)]]
    assert (patching(pair, alike, **options).table["q"] < 0.05).any()
    assert not (patching(pair, [ONE] * 16, **options).table["q"] < 0.05).any()


def test_copies_of_a_few_prompts_give_the_intervals_of_the_few(pair: ModelPair) -> None:
    rows = different(6)
    few = behaviour_diff(pair, rows, metrics=["prob", "accuracy"], seed=0).frame()
    many = behaviour_diff(pair, rows * 10, metrics=["prob", "accuracy"], seed=0).frame()
    np.testing.assert_allclose(many["estimate"], few["estimate"], atol=1e-6)
    width = few["high"] - few["low"]
    assert (width > 0).any()
    np.testing.assert_allclose(many["high"] - many["low"], width, atol=0.02 + 1e-6)


def test_a_recording_knows_them_too(pair: ModelPair) -> None:
    rows = different(8)
    once = activation_delta(record(pair, rows, ["resid_post"])).table
    often = activation_delta(record(pair, rows * 5, ["resid_post"])).table
    np.testing.assert_allclose(often["score"], once["score"], rtol=1e-5)
    np.testing.assert_allclose(often["high"] - often["low"], once["high"] - once["low"], rtol=0.25)


def test_copies_are_in_one_fold(pair: ModelPair) -> None:
    """Labels at random cannot be told; copies in another fold would give them away."""
    labels = np.random.default_rng(0).integers(0, 2, 24).tolist()
    rows = [{**row, "label": label} for row, label in zip(different(24), labels, strict=True)]
    told = head_probe(record(pair, rows * 4, ["z"]), seed=0).table["score"]
    assert told.mean() < 0.7
    with pytest.raises(UserError):
        head_probe(record(pair, [rows[0]] * 20 + [{**rows[0], "label": 1 - labels[0]}] * 20, ["z"]))
