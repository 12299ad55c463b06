"""Probes of test beds where the right answer is known: hand-set weights, planted changes, held-out rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import interventions as iv
import probes
from probes.attributes.switch import ABLATED, OFFSET, SWITCHED
from probes.effects.languages import MOVED
from probes.effects.panel import CHANGE
from tests.probes.copier import copier
from tests.probes.provenance_calls import calls_of_needle_search
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TAUGHT = "quick lazy brown jumps over red big old mad new hot odd".split()
HELD_OUT = "dry wet shy low high warm cold dark pale soft wild calm".split()


def switch_rows(words: list[str], both: bool = False) -> Prompts:
    """Behind "sad" the answer is fox, behind "fun" it is dog; ``both`` adds the rows the other way around."""
    turns = [("sad", "fun", " fox", " dog"), ("fun", "sad", " dog", " fox")]
    return Prompts.of([
        {"prompt": f"{first} the {word}", "contrast": f"{other} the {word}", "answer": right, "distractor": wrong,
         "group": word}
        for word in words for first, other, right, wrong in turns[: 2 if both else 1]
    ])  # fmt: skip


@cache
def obedient() -> AdaptedModel:
    """A tiny model that was taught the switch on other words than those it is tested on."""
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    rows = list(switch_rows(TAUGHT, both=True))
    iv.tune_in_stages(
        model, [iv.Stage(rows, "answer")], schedule=iv.Schedule(epochs=12, batch_size=8, learning_rate=3e-3)
    )
    model.hf.eval()
    return model


def pair_with(tuned: Any, base: Any, words: Any = None) -> ModelPair:
    return load_pair(base, tuned, tokenizer=words or tokenizer(), check=False)


def test_the_direction_of_a_taught_switch_does_without_the_words_and_random_ones_do_not() -> None:
    found = probes.planted_switch(obedient(), switch_rows(HELD_OUT), layers=[0, 1, 2])
    switch, offset, ablated = (found.line("switch", name) for name in (SWITCHED, OFFSET, ABLATED))
    assert switch["score"] >= 0.8 and switch["low"] > 0
    assert offset["score"] >= 0.8 * switch["score"] and offset["control"] <= 0.3
    assert ablated["score"] <= 0.5 * switch["score"] and ablated["control"] >= 0.8 * switch["score"]
    assert switch["q"] < 0.1 and offset["q"] < 0.1


def test_words_that_were_never_taught_switch_nothing() -> None:
    rows = Prompts.of([
        {"prompt": f"sad the {word}", "contrast": f"sad the {word}", "answer": " fox", "distractor": " dog",
         "group": word} for word in HELD_OUT
    ])  # fmt: skip
    found = probes.planted_switch(obedient(), rows, layers=[1])
    assert (found.table["score"] == 0).all() and (found.table["q"] == 1).all() and not found.vectors.any()


def test_a_preference_follows_the_context_on_words_that_were_held_out() -> None:
    rows = switch_rows(HELD_OUT, both=True)
    untuned, deaf = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        for layer in deaf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    found = probes.context_preference(pair_with(obedient().hf, deaf), rows)
    assert found.line("right in both contexts", "tuned")["score"] >= 0.8
    assert found.line("right in both contexts", "base")["score"] == 0  # an answer alone is right in one context
    assert found.line("follows the context", "base")["score"] == pytest.approx(0, abs=1e-5)
    change = found.line("follows the context")
    assert change["low"] > 1 and change["q"] < 0.05
    assert abs(found.line("follows the context", "tuned")["control"]) < change["score"] / 3
    same = probes.context_preference(pair_with(untuned, untuned), rows)
    assert (same.table[same.table["model"] == CHANGE]["score"] == 0).all()


def test_a_reward_head_reads_the_context_on_words_that_were_held_out(tmp_path: Any) -> None:
    head = iv.train_reward_head(obedient(), switch_rows(TAUGHT, both=True), layer=2)
    file = head.save(tmp_path / "head.safetensors")
    hf = obedient().hf
    found = probes.context_preference(pair_with(hf, hf), switch_rows(HELD_OUT, both=True), head=file)
    assert found.line("follows the context", "base")["low"] > 0
    assert found.line("right in both contexts", "base")["low"] > 0.25


def spoken_rows() -> Prompts:
    """The last word of a German row is "x", of an English one "y"."""
    words = [word for word in (*TAUGHT, *HELD_OUT) if not set(word) & set("xy")]
    return Prompts.of([
        {"prompt": f"{first} {word} {'yx'[number % 2]}", "answer": " fox", "distractor": " dog",
         "group": f"{first} {word}", "language": ("en", "de")[number % 2]}
        for first in ("the", "some") for number, word in enumerate(words)
    ])  # fmt: skip


def test_a_shift_of_the_last_layer_moves_every_language_as_its_own_vector_does() -> None:
    """Tuning added one vector after the last layer, so the vector of one language is all of it, in both."""
    base = tiny_model("llama", mlp_bias=True)
    tuned = tuned_copy(base, size=0.0)
    fox, dog = (tokenizer()(word, add_special_tokens=False)["input_ids"][-1] for word in (" fox", " dog"))
    with torch.no_grad():
        tuned.model.layers[-1].mlp.down_proj.bias += 2 * (base.lm_head.weight[fox] - base.lm_head.weight[dog])
    found = probes.language_transfer(pair_with(tuned, base), spoken_rows(), source="en", layer=2, metric="answer")
    for language in ("en", "de"):
        change, moved = found.line(language), found.line(language, MOVED)
        assert change["low"] > 0 and change["q"] < 0.05
        assert moved["score"] == pytest.approx(change["score"], rel=1e-3) and moved["q"] < 0.05
        assert abs(moved["control"]) < 0.5 * moved["score"]
        assert found.numbers[f"share of {language}"] == pytest.approx(1, rel=1e-3)


def test_a_change_of_one_languages_word_is_none_of_the_other_languages() -> None:
    base = tiny_model("llama")
    tuned = tuned_copy(base, size=0.0)
    word = tokenizer()(" y", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        tuned.model.embed_tokens.weight[word] += torch.randn(64, generator=torch.Generator().manual_seed(0))
    found = probes.language_transfer(pair_with(tuned, base), spoken_rows(), source="en", layer=1, metric="answer")
    assert found.line("de")["score"] == 0 and found.line("en")["score"] != 0
    assert np.isnan(found.numbers["share of de"])


@pytest.mark.parametrize(("tuned_head", "rho", "shared"), [(0, 1.0, 1), (1, None, 0)])
def test_a_head_that_retrieves_after_training_is_known_from_one_that_no_longer_does(
    tuned_head: int, rho: float | None, shared: int
) -> None:
    given = calls_of_needle_search().given[0]
    words = given["pair"].tokenizer
    base, tuned = (copier(len(words), 96, head=head).hf for head in (0, tuned_head))
    found = probes.same_heads(**{**given, "pair": pair_with(tuned, base, words), "best": 1})
    (line,) = found.table.to_dict("records")
    assert line["base_answered"] == line["tuned_answered"] == 1 and line["shared"] == shared
    assert line["score"] == pytest.approx(rho) if rho is not None else line["score"] < 0.5


def test_a_model_without_attention_depends_on_the_token_before_alone() -> None:
    rows = Prompts.of([
        {"prompt": f"the {word} jumps", "answer": " fox over lazy dog", "group": word} for word in TAUGHT[:6]
    ])  # fmt: skip
    deaf = tiny_model("llama")
    with torch.no_grad():
        for layer in deaf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    words = tokenizer()
    found = probes.question_dependency(pair_with(tiny_model("llama"), deaf), rows, skip=1)
    assert found.line("share on the question", "base")["score"] == 0
    answer = len(words(" fox over lazy dog", add_special_tokens=False)["input_ids"])
    lengths = [len(words(str(row.prompt))["input_ids"]) for row in rows]
    expected = np.mean([np.mean([1 / (length + step) for step in range(1, answer)]) for length in lengths])
    assert found.line("mean distance", "base")["score"] == pytest.approx(expected, rel=1e-6)
    assert found.line("share on the question")["low"] > 0 and found.line("share on the question")["q"] < 0.05


LIST = "ant bee cat dog eel fox gnu hen".split()


def list_rows() -> Prompts:
    """A list, then one of its items: what a copier looks for is the item that followed it in the list."""
    order = np.random.default_rng(0)
    rows = []
    for number in range(16):
        items = [LIST[place] for place in order.permutation(len(LIST))]
        place = int(order.integers(len(LIST) - 1))
        rows.append({"prompt": f"{' '.join(items)} {items[place]}", "target": items[place + 1], "group": str(number)})
    return Prompts.of(rows)


def test_the_head_that_looks_at_the_next_item_of_a_list_is_the_one_that_was_built_to() -> None:
    rows = list_rows()
    words = word_tokenizer([str(row.prompt) for row in rows])
    base, tuned = (copier(len(words), head=head).hf for head in (1, 0))
    found = probes.target_attention(pair_with(tuned, base, words), rows).table.set_index(["layer", "head"])
    built, left = found.loc[(1, 0)], found.loc[(1, 1)]
    assert built["score"] > 0.9 and built["low"] > 0.9 and built["top"] == 1 and built["q"] < 0.05
    assert built["change"] > 0.7 and built["change_q"] < 0.05 and left["change"] < -0.7
    assert built["control"] < 0.1
    assert (found.loc[0, "change"].abs() < 1e-6).all()  # the heads of layer 0 are the same
    same = probes.target_attention(pair_with(tuned, tuned, words), rows).table
    assert (same["change"] == 0).all() and (same["change_q"] == 1).all()
