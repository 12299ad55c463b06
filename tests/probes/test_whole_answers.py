"""Whole answers as targets of patching: equal to scoring each answer by itself in plain forward passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from probes.patches.cells import Cell
from probes.patches.patching import patching
from tests.probes.test_patching import Pair, pair_of
from tests.probes.test_patching_result import rows
from tests.tiny import FAMILIES, tiny_model, tokenizer, tuned_copy
from workbench.engine.hub import SiteHook
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.prompts.answers import continuation_ids
from workbench.prompts.encode import encode


def long_rows(n: int = 5) -> Prompts:
    """Answers and distractors of one to four tokens, which often begin alike."""
    words = ["fox", "dog", "the", "quick", "lazy", "brown"]
    return Prompts.of([
        {
            "prompt": f"the {words[i % 6]} {words[(i + 2) % 6] if i % 2 else ''}".rstrip(),
            "answer": " over the" + " lazy dog" * (i % 2), "distractor": [" over", " dog the lazy"][i % 2],
        }
        for i in range(n)
    ])  # fmt: skip


def by_hand(model: AdaptedModel, ids: list[int], answer: list[int]) -> float:
    """The summed log-probability of ``answer`` after ``ids``, token by token in whole passes."""
    total = 0.0
    for place, token in enumerate(answer):
        logits = model.forward(torch.tensor([[*ids, *answer[:place]]]))
        total += float(logits[0, -1].double().log_softmax(-1)[token])
    return total


def patched_by_hand(pair: Pair, row: Any, cell: Cell) -> float:
    """The change of answer minus distractor when ``cell`` is put from tuned into base, one text at a time."""
    [ids], scores = encode(Prompts([row]), tokenizer()), []
    for text in (row.answer, row.distractor):
        answer = continuation_ids(row, tokenizer(), text)
        whole, kept = torch.tensor([[*ids, *answer[:-1]]]), []
        with pair.tuned.hooked([SiteHook(cell.site, lambda value, ctx: kept.append(value.clone()))]):  # noqa: B023
            pair.tuned.forward(whole)

        def put(value: torch.Tensor, ctx: object) -> torch.Tensor:
            new = value.clone()
            at = slice(None) if cell.positions is None else [len(ids) + place for place in cell.positions]
            if cell.head is None:
                new[0, at] = kept[0][0, at]  # noqa: B023
            else:
                new[0, at, cell.head] = kept[0][0, at, cell.head]  # noqa: B023
            return new

        found = []
        for hooks in ([SiteHook(cell.site, put, edit=True)], []):
            with pair.base.hooked(hooks):
                logits = pair.base.forward(whole)[0, len(ids) - 1 :].double().log_softmax(-1)
            found.append(float(logits.gather(1, torch.tensor(answer)[:, None]).sum()))
        scores.append(found[0] - found[1])
    return scores[0] - scores[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_answers_equal_plain_passes(family: str) -> None:
    """Both runs' metric and every effect, in mixed batches with padding on both sides."""
    pair, given = pair_of(family), long_rows()
    options = {"answer_tokens": "all", "normalise": False, "together": 0, "what": "z", "layers": [0, 2], "draws": 20}
    found = patching(pair, given, batch_size=3, **options)
    ids = encode(given, tokenizer())
    for model, value in ((pair.tuned, found.source_value), (pair.base, found.target_value)):
        apart = [
            by_hand(model, one, continuation_ids(row, tokenizer(), row.answer))
            - by_hand(model, one, continuation_ids(row, tokenizer(), row.distractor))
            for row, one in zip(given, ids, strict=True)
        ]
        assert value[0] == pytest.approx(np.mean(apart), abs=2e-3)
    for column in (1, 6):
        place = found.table.iloc[column]
        cell = Cell("z", int(place.layer), int(place["head"]))
        expected = [patched_by_hand(pair, row, cell) for row in given]
        assert found.effects[:, column] == pytest.approx(expected, abs=2e-3)
    assert np.abs(found.effects).max() > 1e-2 and pair.base.n_hooks == pair.tuned.n_hooks == 0


def test_positions_count_from_the_last_prompt_token() -> None:
    pair, given = pair_of("llama"), long_rows()
    found = patching(
        pair, given, "resid_post", positions=[-1, -2], layers=[0, 1], answer_tokens="all", normalise=False, batch_size=2
    )
    for column, row in found.table.iterrows():
        cell = Cell("resid_post", int(row.layer), None, (int(row.position),))
        assert found.effects[:, column] == pytest.approx([patched_by_hand(pair, one, cell) for one in given], abs=2e-4)


def test_answers_of_one_token_score_as_the_first_token_does() -> None:
    pair, given = pair_of("llama", torch.float64), rows(8)
    one = {len(continuation_ids(row, tokenizer(), text)) for row in given for text in (row.answer, row.distractor)}
    assert one == {1}
    options: dict[str, Any] = {"normalise": False, "together": 0, "draws": 20}
    for method in ("exact", "attribution"):
        first, whole = (
            patching(pair, given, method=method, confirm=0.0, answer_tokens=kind, **options)
            for kind in ("first", "all")
        )
        assert whole.effects == pytest.approx(first.effects, abs=1e-5) and np.abs(first.effects).max() > 1e-3
        assert whole.source_value == pytest.approx(first.source_value, abs=1e-5)


@pytest.mark.parametrize("steps", ["attribution", "ig"])
def test_estimates_of_whole_answers_are_the_derivative_of_the_patch(steps: str) -> None:
    pair, given = pair_of("qwen2", torch.float64, size=1e-4), long_rows()
    options: dict[str, Any] = {"answer_tokens": "all", "normalise": False, "together": 0, "draws": 20, "what": "z"}
    exact = patching(pair, given, **options)
    found = patching(pair, given, method=steps, confirm=0.0, **options)
    assert found.effects == pytest.approx(exact.effects, abs=1e-2 * np.abs(exact.effects).max())


def test_the_probability_of_a_whole_answer_needs_no_distractor() -> None:
    pair = pair_of("llama")
    given = Prompts.of([{"prompt": "the fox", "answer": " over the dog"}, {"prompt": "a", "answer": " dog"}])
    found = patching(pair, given, metric="prob", answer_tokens="all", normalise=False, together=0)
    expected = [
        np.exp(by_hand(pair.tuned, ids, continuation_ids(row, tokenizer())))
        for row, ids in zip(given, encode(given, tokenizer()), strict=True)
    ]
    assert found.source_value[0] == pytest.approx(np.mean(expected), rel=1e-4)


def test_base_against_itself_moves_no_whole_answer() -> None:
    twin = Pair(tiny_model("llama"), tiny_model("llama"))
    found = patching(twin, long_rows(), answer_tokens="all", normalise=False, together=0)
    assert (found.effects == 0).all() and (found.table.q == 1).all()
    with pytest.raises(UserError, match="Nothing to localize"):
        patching(twin, long_rows(), answer_tokens="all")


def test_a_prefix_is_another_answer_and_the_same_answer_is_none() -> None:
    pair = pair_of("llama")
    given = [{"prompt": "the fox", "answer": " over the dog", "distractor": " over"}]
    assert len(patching(pair, given, answer_tokens="all", normalise=False, together=0).effects) == 1
    with pytest.raises(UserError, match="the same tokens as far as the shorter one goes"):
        patching(pair, given, normalise=False, together=0)
    same = [{"prompt": "the fox", "answer": " over", "distractor": " over"}]
    with pytest.raises(UserError, match="choose answers that differ"):
        patching(pair, same, answer_tokens="all", normalise=False, together=0)


def test_errors_of_whole_answers() -> None:
    pair = pair_of("llama")
    with pytest.raises(UserError, match="reads no answers"):
        patching(pair, long_rows(), metric="kl", answer_tokens="all")
    with pytest.raises(UserError, match=r"no answer; answer_tokens='all' scores whole answers"):
        patching(pair, ["the fox"], answer_tokens="all")
    with pytest.raises(UserError, match="do not fit in the model's"):
        patching(pair, [{"prompt": "the fox", "answer": " dog" * 5000, "distractor": " over"}], answer_tokens="all")


def test_a_contrast_can_bring_both_whole_answers() -> None:
    base = tiny_model("llama")
    pair = load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)
    questions = Prompts.of(["the fox", "the lazy dog", "quick brown"])
    parted, whole = (wb.contrast(pair, questions, max_new_tokens=5, whole=one) for one in (False, True))
    assert len(parted) == len(whole) and [row.prompt for row in whole] == [
        questions[row.columns["row"]].prompt for row in whole
    ]
    for short, long in zip(parted, whole, strict=True):
        assert len(long.columns["answer_ids"]) > 1 and short.columns["answer_ids"][0] in long.columns["answer_ids"]
    found = patching(pair, whole, "resid_post", positions="last", answer_tokens="all", normalise=False)
    assert found.source_value[0] > 0 > found.target_value[0]
