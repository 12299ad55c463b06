"""Ids against rows: every entry names the tokens that a side has no row for, in prompts and in answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import probes
import workbench as wb
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError

ROWS = [{"input_ids": [3, 25, 7 + number], "answer": "fox", "distractor": "dog"} for number in range(4)]


@pytest.fixture(scope="module")
def pair() -> wb.ModelPair:
    """The tuned model reads 310 ids, its base 200."""
    tuned = tuned_copy(tiny_model("llama", vocab_size=200))
    tuned.resize_token_embeddings(310)
    return wb.load_pair(tiny_model("llama", vocab_size=200), tuned, tokenizer=tokenizer())


BEYOND = [{**row, "input_ids": [3, 250, 7]} for row in ROWS]
ANSWERED = [{**row, "answer_ids": [250], "distractor_ids": [4]} for row in ROWS]
ENTRIES: dict[str, Callable[[wb.ModelPair], Any]] = {
    "record": lambda pair: wb.record(pair, BEYOND, ["resid_post"]),
    "generate": lambda pair: pair.base.generate(BEYOND),
    "a batch": lambda pair: pair.base.forward(torch.tensor([[3, 250]])),
    "behaviour": lambda pair: wb.behaviour_diff(pair, BEYOND, metrics=["kl"], texts=False),
    "movement": lambda pair: probes.probability_movement(pair, BEYOND),
    "patching": lambda pair: probes.patching(pair, BEYOND),
    "given answers": lambda pair: wb.behaviour_diff(pair, ANSWERED, metrics=["accuracy"], texts=False),
    "answers to patch": lambda pair: probes.patching(pair, ANSWERED),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES)
def test_ids_beyond_a_sides_rows_are_named(pair: wb.ModelPair, entry: str) -> None:
    what = "answers" if "answers" in entry else "prompts"
    with pytest.raises(UserError, match=rf"The {what} hold .*\(id 250\), and the base has embedding rows .* 0 to 199"):
        ENTRIES[entry](pair)


def test_answers_in_words_beyond_a_sides_rows_are_named(pair: wb.ModelPair) -> None:
    with pytest.raises(UserError, match=r"The answers hold .*quick"):
        wb.behaviour_diff(pair, [{"input_ids": [5, 6], "answer": "quick"}], metrics=["prob"], texts=False)


def test_negative_ids_are_refused(pair: wb.ModelPair) -> None:
    with pytest.raises(UserError, match=r"negative token id \(-1\)"):
        pair.tuned.forward(torch.tensor([[3, -1]]))


def test_what_both_sides_read_is_compared_on_the_common_ids(pair: wb.ModelPair) -> None:
    plain = [{"input_ids": row["input_ids"]} for row in ROWS]
    assert wb.behaviour_diff(pair, plain, metrics=["kl"], texts=False).by_metric()["tuned"].notna().all()
    assert probes.weight_delta(pair).unmatched == ("lm_head.weight[200:]", "embed_tokens.weight[200:]")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj", "layers.1.self_attn.q_proj", "layers.0.self_attn.o_proj"])
def test_weights_that_are_no_numbers_are_told(wrong: float, name: str) -> None:
    base = tiny_model("llama")
    broken = tuned_copy(base)
    broken.model.get_submodule(name).weight.data[0, 0] = wrong
    result = probes.weight_delta(wb.load_pair(base, broken, tokenizer=tokenizer()))
    assert f"1 weights hold NaN or infinite entries in one of the models ({name}.weight)" in result.summary()
