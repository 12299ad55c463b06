"""Greedy answers that were written once: the same texts, without a second generation."""

from __future__ import annotations

import pytest
import torch

import interventions as iv
from tests.tiny import tiny_model, tokenizer
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.known_replies import KnownReplies, known_replies
from workbench.behaviour.subject import Subject, Work
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

ROWS = Prompts.of(["the fox", "the quick brown dog", "over the lazy dog", "the fox"])


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    hf = tiny_model("llama", 0)
    return load_pair(hf, hf, tokenizer=tokenizer(), check=False).tuned


def written(model: AdaptedModel, rows: Prompts, tokens: int, **options: int) -> list[tuple[int, ...]]:
    replies = generate_replies(Subject("plain", model), rows, Decoding(tokens, **options), Work())
    return [sample.ids for row in replies for sample in row]


def test_a_shorter_answer_is_the_beginning_of_the_one_that_is_known(
    model: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {tokens: generate_replies(Subject("plain", model), ROWS, Decoding(tokens), Work()) for tokens in (3, 8)}
    known = KnownReplies()
    with known_replies(known):
        assert written(model, ROWS[[0, 1]], 8) == [row[0].ids for row in plain[8]][:2]
        again = generate_replies(Subject("plain", model), ROWS, Decoding(8), Work())  # the third alone is written
        monkeypatch.setattr(AdaptedModel, "generate_ids", _never)
        short = generate_replies(Subject("other name", model), ROWS, Decoding(3), Work())
    assert again == plain[8] and short == plain[3]


def test_more_tokens_recipes_and_samples_are_written(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    known, new = KnownReplies(), Work()
    with known_replies(known):
        written(model, ROWS, 2)
        longer = written(model, ROWS, 4)
        monkeypatch.setattr(AdaptedModel, "generate_ids", _never)
        recipe = iv.Recipe([])
        for subject, decoding in (
            (Subject("recipe", model, recipe), Decoding(2)),
            (Subject("sampled", model), Decoding(2, samples=1)),
        ):
            with pytest.raises(AssertionError, match="written anew"):
                generate_replies(subject, ROWS, decoding, new)
    assert [len(ids) for ids in longer] == [4] * 4
    with pytest.raises(AssertionError, match="written anew"):  # the context is closed
        written(model, ROWS, 2)


def test_a_model_that_was_changed_writes_its_own() -> None:
    """Its weights written to, or a recipe's context open: nothing that is known is of it."""
    hf = tiny_model("llama", 3)
    own = load_pair(hf, hf, tokenizer=tokenizer(), check=False).tuned
    push = iv.Recipe([iv.Offset(1, 30 * torch.randn(own.d_model, generator=torch.Generator().manual_seed(0)))])
    with known_replies(KnownReplies()):
        plain = written(own, ROWS, 6)
        with push.applied(own):
            assert written(own, ROWS, 6) != plain
        assert written(own, ROWS, 6) == plain
        with torch.no_grad():
            own.hf.get_output_embeddings().weight.copy_(tiny_model("llama", 4).get_output_embeddings().weight)
        assert written(own, ROWS, 6) != plain


def _never(*_: object, **__: object) -> None:
    raise AssertionError("written anew")
