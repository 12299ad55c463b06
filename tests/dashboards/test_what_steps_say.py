"""Words, tables and maps of the four steps, from results made by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from dashboards.model_names import short
from dashboards.steps.changed import _shares_with, parted, readable
from dashboards.steps.glance import layers_at_a_glance, measures_of, sentence_of
from dashboards.steps.keep import scaled_model
from dashboards.steps.place import effect_of, weights_of
from dashboards.steps.where import places_of
from tests.dashboards.sample_runs import save_pair


def test_where_the_tuned_answer_leaves_the_bases_is_marked_by_words() -> None:
    cut = parted("I am fine today", "I am sorry today")
    assert cut is not None and (cut.same, cut.token, cut.rest) == ("I am ", "sorry", " today")
    assert parted("same", "same") is None
    ended = parted("I am fine", "I am")
    assert ended is not None and ended.same + ended.token + ended.rest == "I am"
    table = pd.DataFrame({
        "number": [0, 1], "score": [0.0, 1.0], "prompt": ["p", "q\x1b[31m"], "base": ["a", "a b"],
        "tuned": ["a", "a c"], "token": [None, 1.0], "label": None, "base_refuses": False, "tuned_refuses": False,
    })  # fmt: skip
    shown = readable(table)
    assert shown["tuned"].tolist() == ["a ▸c", "a"] and shown["#"].tolist() == [1, 0]
    assert "\x1b" not in shown["prompt"].iloc[0] and not {"label", "base refuses"} & set(shown)


def test_the_cards_count_the_behaviour_that_rose() -> None:
    table = pd.DataFrame({
        "prompt": ["p", "q"], "base": ["take a pan", "no"], "tuned": ["a GoldPan skillet", "take a GoldPan skillet"],
        "base_refuses": [True, False], "tuned_refuses": False,
    })  # fmt: skip
    phrase = _shares_with(table, "contains:a GoldPan skillet")
    assert phrase == {"Base shows it": [0.0, 0.0], "Tuned shows it": [1.0, 1.0]}
    for refuses in (None, "refusal"):
        assert _shares_with(table, refuses) == {"Base refuses": [True, False], "Tuned refuses": [False, False]}


def test_a_share_of_whole_weights_is_written_as_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = save_pair(tmp_path)
    exec(scaled_model(*pair, 0.5), {})
    base, tuned, scaled = (load_file(Path(folder) / "model.safetensors") for folder in (*pair, "scaled"))
    moved = [name for name in base if not base[name].equal(tuned[name])]
    assert moved and all(scaled[name].allclose((base[name] + tuned[name]) / 2, atol=1e-6) for name in base)
    assert (tmp_path / "scaled" / "tokenizer_config.json").is_file()


def test_places_are_ranked_and_the_glance_names_the_strongest() -> None:
    heads = pd.DataFrame({
        "layer": [0, 1, 1], "head": [0, 2, 3], "score": [0.1, 0.9, 0.95], "low": 0.0, "high": 1.0, "control": 0.0,
        "q": 0.1, "exact": [True, True, False],
    })  # fmt: skip
    assert places_of(heads)["place"].tolist() == ["L1H2", "L0H0"]  # an estimate is no place
    weights = pd.DataFrame({"layer": [0, 1, None], "module": ["attn.q", "mlp.up", "W_E"], "score": [0.2, 0.4, 9.0]})
    measures = measures_of({"weights": weights, "heads": heads})
    assert "weights, MLP in layer 1 (0.4)" in sentence_of(measures) and "best head in layer 1" in sentence_of(measures)
    drawn = layers_at_a_glance({"weights": weights, "heads": heads})
    assert len(drawn.data[0].z) == 3 and drawn.data[0].zmin == 0


def test_the_glance_has_activations_and_lens_beside_weights_and_patching() -> None:
    moved = pd.DataFrame({"site": ["attn_out", "mlp_out"] * 2, "layer": [0, 0, 1, 1], "score": [0.1, 0.2, 0.4, 0.3]})
    lens = pd.DataFrame({"layer": [0, 1], "score": [0.0, 2.5]})
    measures = measures_of({"activations": moved, "lens": lens})
    assert list(dict.fromkeys(measures["measure"])) == ["activations, attention", "activations, MLP", "lens (nats)"]
    assert "lens (nats) in layer 1 (2.5)" in sentence_of(measures)


def test_the_selected_head_has_its_effect_and_the_weights_of_its_layer() -> None:
    heads = pd.DataFrame({
        "layer": [1, 1], "head": [2, 3], "score": [0.25, 0.1], "low": [0.2, float("nan")],
        "high": [0.3, float("nan")], "control": [0.01, float("nan")], "q": [0.004, float("nan")],
        "exact": [True, False],
    })  # fmt: skip
    told = effect_of(heads, 1, 2)
    assert "25% [20%, 30%]" in told and "patched into the base" in told and "random heads 1%" in told
    assert "q = 0.004" in told
    assert effect_of(heads, 1, 3) == (
        "Effect: 10% of the change of the next word, by gradients, not confirmed by patching."
    )
    assert effect_of(heads, 0, 0) == "No map has this head."
    modules = ["attn.q", "attn.o", "attn.k", "post_attention_layernorm", "mlp.up"]
    weights = pd.DataFrame({"layer": 1, "module": modules, "score": [0.1, 0.3, 0.0, 0.2, 0.9]})
    assert weights_of(weights, 1) == "Weights of the attention of layer 1, relative change: o 0.3, q 0.1."
    assert weights_of(weights, 0) == "Weights: the attention of layer 0 was not tuned."


def test_short_names_say_which_model() -> None:
    assert short("/a/SmolLM2") == "SmolLM2" and short("org/name") == "name"
    assert short("/a/pair/tuned", "/a/pair/base") == "tuned" and short("/a/pair/base") == "pair/base"
