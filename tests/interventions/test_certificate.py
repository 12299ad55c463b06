"""Certificates of exports: equal where the export is exact, refused where it is another recipe."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import interventions as iv
from interventions.exchange.adapter import to_adapter
from interventions.exchange.bake import bake
from interventions.exchange.certificate import certify
from interventions.exchange.control_vectors import to_gguf
from tests.gguf_writing import write_gguf
from tests.tiny import tiny_model, tokenizer
from workbench.errors import MissingExtra, UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

ROWS = Prompts.of(["the quick brown", "fox jumps", "over the lazy dog"], chat=False)
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(2))


def model() -> AdaptedModel:
    return AdaptedModel(tiny_model("llama"), tokenizer(), role="model")


def test_a_baked_model_is_certified_and_another_recipe_is_not(tmp_path: Path) -> None:
    recipe = iv.Recipe([iv.Offset(1, VECTOR, site="attn_out")])
    folder = bake(model(), recipe, tmp_path / "baked")
    found = certify(model(), recipe, folder, ROWS, max_new_tokens=4)
    assert found.holds and found.noise == 0 and found.equal_tokens == 1 and found.effect > 0.1
    assert found.difference < 1e-3 and found.prompts == 3 and found.tokens == 3 * 5
    assert found.summary().startswith("Holds") and found.to_dict()["holds"] is True
    other = certify(model(), recipe * -1.0, folder, ROWS, max_new_tokens=4)
    assert not other.holds and other.difference > 0.1 and other.summary().startswith("Does not hold")


def test_a_recipe_that_does_nothing_certifies_nothing(tmp_path: Path) -> None:
    recipe = iv.Recipe([iv.Offset(1, VECTOR, site="attn_out")])
    folder = bake(model(), recipe * 0.0, tmp_path / "baked")
    assert not certify(model(), recipe * 0.0, folder, ROWS, max_new_tokens=2).holds


def test_an_adapter_is_certified(tmp_path: Path) -> None:
    recipe = iv.Recipe([iv.HeadScale({"L0H1": 0.25, "L2H3": 0.0})])
    folder = to_adapter(model(), recipe, tmp_path / "adapter")
    found = certify(model(), recipe, folder, ROWS, max_new_tokens=4)
    assert found.holds and found.target == "a PEFT adapter" and found.equal_tokens == 1


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_control_vector_is_certified_in_llama_cpp(family: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    # llama.cpp takes the size of the vocabulary from the list of tokens
    own = AdaptedModel(tiny_model(family, vocab_size=len(tokenizer())), tokenizer(), role="model")
    weights = write_gguf(tmp_path / "weights.gguf", own.hf, architecture=family)
    recipe = iv.Recipe([iv.Offset(1, 0.5 * VECTOR)])
    file = to_gguf(recipe, tmp_path / "vector.gguf", own)
    found = certify(own, recipe, file, ROWS, weights=weights, max_new_tokens=4)
    assert found.holds and found.target.startswith("llama.cpp") and found.effect > 20 * found.difference
    assert not certify(own, recipe * -1.0, file, ROWS, weights=weights, max_new_tokens=4).holds


def test_what_cannot_be_certified_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = iv.Recipe([iv.Offset(1, VECTOR)])
    with pytest.raises(UserError, match="no export that can be run"):
        certify(model(), recipe, tmp_path, ROWS)
    file = to_gguf(recipe, tmp_path / "vector.gguf", model())
    with pytest.raises(UserError, match=r"own \.gguf file"):
        certify(model(), recipe, file, ROWS)
    monkeypatch.setattr("interventions.exchange.llama_cpp_target.find_spec", lambda name: None)
    assert find_spec("torch") is not None
    with pytest.raises(MissingExtra, match=r"tunescope\[llama\]"):
        certify(model(), recipe, file, ROWS, weights=tmp_path / "weights.gguf", max_new_tokens=1)
