"""Sampled texts: exactly the model's distribution, the same whatever the batch, padding and partner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.workbench.behaviour.pushed import ROWS, Push, token
from workbench.behaviour import behaviour_diff
from workbench.behaviour.generation import Decoding, SharedNoise, end_ids, generate_replies, gumbel
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

PROMPTS = ["the", "the quick brown fox jumps over the lazy dog", "jumps over", "lazy"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3moe"])
def model(request: pytest.FixtureRequest) -> AdaptedModel:
    return AdaptedModel(tiny_model(request.param), tokenizer())


def texts(model: AdaptedModel, prompts: list[str], decoding: Decoding, batch_size: int = 32) -> list[list[tuple]]:
    found = generate_replies(Subject("m", model), Prompts.of(prompts), decoding, Work(batch_size))
    return [[one.ids for one in row] for row in found]


def test_the_same_texts_in_any_batch_and_padding(model: AdaptedModel) -> None:
    decoding = Decoding(max_new_tokens=6, samples=3, temperature=0.8)
    together = texts(model, PROMPTS, decoding)
    assert together == texts(model, PROMPTS, decoding, batch_size=1) == texts(model, PROMPTS, decoding, batch_size=3)
    for number in (0, 3):
        assert texts(model, [PROMPTS[number]], decoding) == [together[number]]
    assert texts(model, PROMPTS[::-1], decoding) == together[::-1]
    assert len({one for row in together for one in row}) > 12
    other = texts(model, PROMPTS, Decoding(max_new_tokens=6, samples=3, temperature=0.8, seed=1))
    assert [row[0] for row in other] == [row[0] for row in together]
    assert sum(left != right for left, right in zip(together, other, strict=True)) >= 3


def test_greedy_is_generates_own(model: AdaptedModel) -> None:
    found = generate_replies(Subject("m", model), Prompts.of(PROMPTS), Decoding(max_new_tokens=5, samples=1), Work(2))
    assert [row[0].text for row in found] == model.generate(PROMPTS, max_new_tokens=5)


def test_a_repeated_prompt_has_noise_of_its_own() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    decoding = Decoding(max_new_tokens=6, samples=1)
    one, again = texts(model, ["the", "the"], decoding)
    assert one[0] == again[0] and one[1] != again[1]
    assert texts(model, ["the"], decoding)[0] == one


def test_noise_depends_on_the_token_and_not_on_the_size_of_the_vocabulary() -> None:
    key = np.array([3, 7], dtype=np.uint64)
    assert np.array_equal(gumbel(key, 2, 500)[:300], gumbel(key, 2, 300))
    assert not np.array_equal(gumbel(key, 2, 300), gumbel(key, 3, 300))
    assert stats.kstest(gumbel(key, 0, 50_000), "gumbel_r").pvalue > 0.01


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}])
def test_samples_have_the_model_s_distribution(options: dict[str, Any]) -> None:
    """4,000 draws from four tokens against the exact chances (chi-square)."""
    decoding = Decoding(samples=1, **options)
    chances = np.array([0.4, 0.3, 0.2, 0.1])
    logits = torch.tensor(chances).log().float()
    draws = 4_000
    noise = SharedNoise([f"key {n}" for n in range(draws)], 1, decoding)
    changed = noise(torch.zeros((draws, 1), dtype=torch.long), logits.expand(draws, -1))
    counts = np.bincount(changed.argmax(-1).numpy(), minlength=4)
    wanted = chances ** (1 / decoding.temperature)
    if decoding.top_k or decoding.top_p < 1:
        wanted[{"top_k": 3, "top_p": 2}[next(iter(options))] :] = 0
    wanted = wanted / wanted.sum()
    assert counts[wanted == 0].sum() == 0
    assert stats.chisquare(counts[wanted > 0], draws * wanted[wanted > 0]).pvalue > 0.001


def test_base_against_itself_writes_the_same_samples() -> None:
    hf = tiny_model("llama")
    found = behaviour_diff(
        load_pair(hf, hf, tokenizer=tokenizer()), ROWS, metrics=["same_as_base", "repetition", "refusal", "new_tokens"],
        samples=4, max_new_tokens=5,
    )  # fmt: skip
    assert found.value("tuned", "same_as_base") == 1.0
    assert (found.table[["change", "change_low", "change_high", "from_base"]] == 0).all(axis=None)
    assert found.texts["from_base"].isna().all() and len(found.texts) == 12 * 5 * 2
    texts = found.texts[found.texts["sample"] > 0].groupby("prompt")["text"].nunique()
    assert (texts > 1).all()


def test_models_that_nearly_agree_write_nearly_the_same() -> None:
    """Shared noise couples the samples: a tiny change of the weights changes few of them, as a large one does not."""
    base = tiny_model("llama")
    shares = []
    for size in (1e-5, 0.2):
        pair = load_pair(base, tuned_copy(base, size=size), tokenizer=tokenizer())
        found = behaviour_diff(pair, ROWS, metrics=["same_as_base"], samples=3, max_new_tokens=5)
        shares.append(found.value("tuned", "same_as_base"))
    assert shares[0] > 0.9 and shares[1] < 0.2


def test_a_text_ends_at_its_end_token() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    assert end_ids(model) == {2}
    ended = generate_replies(Subject("m", model, Push(2)), Prompts.of(["the"]), Decoding(max_new_tokens=4), Work())
    assert ended[0][0].ids == (2,) and ended[0][0].ended and ended[0][0].text == "" and ended[0][0].content == ()
    fox = generate_replies(Subject("m", model, Push(token("fox"))), Prompts.of(["the"]), Decoding(4), Work())
    assert fox[0][0].ids == (token("fox"),) * 4 and not fox[0][0].ended and fox[0][0].text == " fox fox fox fox"


def test_bad_input() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    with pytest.raises(UserError, match="limit of 256"):
        texts(model, ["the"], Decoding(max_new_tokens=300))
    for bad in ({"temperature": 0.0}, {"top_p": 0.0}, {"max_new_tokens": 0}, {"samples": -1}):
        with pytest.raises(UserError, match="Give"):
            Decoding(**bad)  # type: ignore[arg-type]
