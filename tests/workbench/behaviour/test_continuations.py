"""Teacher-forced numbers are those of one forward pass of the bare model, and recipes act as in generate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.workbench.behaviour.pushed import Push, token
from workbench.behaviour import behaviour_diff
from workbench.behaviour.continuations import KLFromModels, kl_per_token, logprobs, text_logprobs
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.prompts.encode import encode

ROWS = [
    {"prompt": "the quick brown", "answer": " fox jumps over", "distractor": " dog"},
    {"prompt": "the lazy", "answer": " dog", "distractor": " fox jumps"},
    {"prompt": "jumps over the quick brown fox", "answer": " the lazy dog", "distractor": " jumps"},
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Any:
    base = tiny_model(request.param)
    return load_pair(base, tuned_copy(base, size=0.05), tokenizer=tokenizer())


@torch.no_grad()
def bare(model: AdaptedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [position, vocab] of one row, from the Hugging Face model alone."""
    return model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def split(row: dict[str, str], column: str) -> tuple[list[int], list[int]]:
    ids = tokenizer()(row["prompt"] + row[column])["input_ids"]
    prompt = tokenizer()(row["prompt"])["input_ids"]
    assert ids[: len(prompt)] == prompt
    return prompt, ids[len(prompt) :]


def by_hand(model: AdaptedModel, row: dict[str, str], column: str = "answer") -> float:
    prompt, rest = split(row, column)
    table = bare(model, prompt + rest)
    return float(sum(table[len(prompt) + place - 1, one] for place, one in enumerate(rest)))


def test_the_whole_answer_counts_not_only_its_first_token(pair: Any) -> None:
    found = behaviour_diff(pair, ROWS, metrics=["answer_logprob", "answer_prob", "answer_diff"], batch_size=2)
    for model in (pair.base, pair.tuned):
        rows = found.rows[found.rows["model"] == model.role]
        wanted = [by_hand(model, row) for row in ROWS]
        other = [by_hand(model, row, "distractor") for row in ROWS]
        assert rows["answer_logprob"].tolist() == pytest.approx(wanted, abs=1e-4)
        assert rows["answer_prob"].tolist() == pytest.approx(np.exp(wanted), rel=1e-3)
        assert rows["answer_diff"].tolist() == pytest.approx(np.subtract(wanted, other), abs=1e-4)
        assert found.value(model.role, "answer_logprob") == pytest.approx(np.mean(wanted), abs=1e-4)


def test_kl_per_token_in_both_directions(pair: Any) -> None:
    metrics = ["kl_base_model", "kl_model_base"]
    found = behaviour_diff(pair, ROWS, metrics=metrics, continuation="answer", batch_size=2)
    forth, back = [], []
    for row in ROWS:
        prompt, rest = split(row, "answer")
        p, q = (bare(model, prompt + rest)[len(prompt) - 1 : -1] for model in (pair.base, pair.tuned))
        forth.append(float((p.exp() * (p - q)).sum(-1).mean()))
        back.append(float((q.exp() * (q - p)).sum(-1).mean()))
    assert found.value("tuned", "kl_base_model") == pytest.approx(np.mean(forth), rel=1e-4)
    assert found.value("tuned", "kl_model_base") == pytest.approx(np.mean(back), rel=1e-4)
    assert found.value("tuned", "kl_base_model") != pytest.approx(found.value("tuned", "kl_model_base"), rel=1e-3)
    assert found.value("base", "kl_base_model") == 0.0


def test_kl_over_generated_texts_needs_no_answers(pair: Any) -> None:
    rows = [row["prompt"] for row in ROWS]
    over = {
        text: behaviour_diff(pair, rows, metrics=["kl_base_model"], continuation=text, max_new_tokens=4)
        for text in ("base", "tuned")
    }
    ids = encode(Prompts.of(rows), tokenizer())
    for side, found in over.items():
        texts = [tokenizer()(text, add_special_tokens=False)["input_ids"] for text in found.texts["text"]]
        assert found.value("tuned", "kl_base_model") > 0 and len(texts) == 6
        new = pair.models[side].generate_ids(pair.models[side].encode(rows[:1]), max_new_tokens=4)[0, len(ids[0]) :]
        (values,) = kl_per_token(Subject("b", pair.base), [Subject("t", pair.tuned)], ids[:1], [new.tolist()], Work())
        assert found.rows[found.rows["model"] == "tuned"]["kl_base_model"].iloc[0] == pytest.approx(
            values[0, 0], abs=1e-5
        )


@pytest.mark.parametrize("held_bytes", [0, 2**30])
def test_kl_from_models_is_kl_per_token_whether_they_are_held_or_read_again(pair: Any, held_bytes: int) -> None:
    prompts = encode(Prompts.of([row["prompt"] for row in ROWS]), tokenizer())
    answers = [tokenizer()(row["answer"], add_special_tokens=False)["input_ids"] for row in ROWS]
    plain = [Subject(role, model) for role, model in pair.models.items()]
    read = KLFromModels(plain, prompts, answers, Work(2), held_bytes)
    for _ in range(2):
        for subject in plain:
            for model, values in zip(plain, read.of(subject), strict=True):
                (wanted,) = kl_per_token(model, [subject], prompts, answers, Work(2))
                assert np.array_equal(values, wanted[:, 0]) and (model is subject) == (not values.any())
    assert bool(read._held) == bool(held_bytes)


def test_perplexity_is_per_token_over_all_texts(pair: Any) -> None:
    texts = ["the quick brown fox jumps over the lazy dog", "the dog", "over the brown fox"]
    found = behaviour_diff(pair, ROWS, metrics=["perplexity"], neutral=texts, batch_size=2)
    for model in (pair.base, pair.tuned):
        total, count = 0.0, 0
        for text in texts:
            ids = tokenizer()(text)["input_ids"]
            table = bare(model, ids)
            total += float(sum(table[place - 1, ids[place]] for place in range(1, len(ids))))
            count += len(ids) - 1
        assert found.value(model.role, "perplexity") == pytest.approx(math.exp(-total / count), rel=1e-4)
    line = found.table[found.table["model"] == "tuned"].iloc[0]
    assert line["n"] == 3 and line["low"] <= line["estimate"] <= line["high"] and line["change"] == 0.0
    assert line["from_base"] == pytest.approx(found.value("tuned", "perplexity") - found.value("base", "perplexity"))
    assert len(found.neutral) == 6 and found.neutral["tokens"].sum() == 2 * count


@pytest.mark.parametrize(("positions", "moved"), [("generated", [False, True]), ("last", [True, False])])
def test_positions_of_a_recipe_mean_what_they_mean_in_generate(pair: Any, positions: str, moved: list[bool]) -> None:
    """Of a continuation of two tokens, "last" moves the first token's logits and "generated" the second's."""
    fox = token("fox")
    rows = [row["prompt"] for row in ROWS]
    ids = encode(Prompts.of(rows), tokenizer())

    def second(subject: Subject, first: list[int]) -> np.ndarray:
        """Log-probability of fox behind ``first``."""
        both = logprobs(subject, ids, [[*first, fox] for _ in ids], Work(2)).sum_
        return both - (logprobs(subject, ids, [first for _ in ids], Work(2)).sum_ if first else 0.0)

    plain, pushed = Subject("plain", pair.tuned), Subject("pushed", pair.tuned, Push(fox, positions=positions))
    for place, changed in enumerate(moved):
        gap = np.abs(second(pushed, [9] * place) - second(plain, [9] * place))
        assert (gap > 0.1).all() if changed else (gap < 1e-4).all()
    assert pair.tuned.n_hooks == 0


def test_a_recipe_moves_neutral_text_although_it_acts_on_new_tokens_only(pair: Any) -> None:
    texts = Prompts.of(["the quick brown fox", "the lazy dog"])
    plain = text_logprobs(Subject("plain", pair.tuned), texts, Work())
    pushed = text_logprobs(Subject("pushed", pair.tuned, Push(token("fox"), positions="generated")), texts, Work())
    assert (np.abs(plain.sum_ - pushed.sum_) > 0.1).all() and plain.tokens.tolist() == pushed.tokens.tolist()


def test_bad_input(pair: Any) -> None:
    with pytest.raises(UserError, match="Prompt 0 has no answer"):
        behaviour_diff(pair, ["the"], metrics=["answer_logprob"])
    with pytest.raises(UserError, match="Prompt 0 has no distractor"):
        behaviour_diff(pair, [{"prompt": "the", "answer": " fox"}], metrics=["answer_diff"])
    with pytest.raises(UserError, match="neutral texts"):
        behaviour_diff(pair, ROWS, metrics=["perplexity"])
    with pytest.raises(UserError, match="limit is 256"):
        behaviour_diff(pair, [{"prompt": "the", "answer": " fox" * 300}], metrics=["answer_logprob"])
    with pytest.raises(UserError, match="Did you mean 'answer'"):
        behaviour_diff(pair, ROWS, metrics=["kl_base_model"], continuation="answers")
    with pytest.raises(UserError, match="does not know"):
        logprobs(Subject("t", pair.tuned), [[4]], [[5000]], Work())
    with pytest.raises(UserError, match="Did you mean 'samples'"):
        behaviour_diff(pair, ROWS, sample=3)
