"""The wheel's own GGUF file beside the folder that was unpacked from it: the same model, and told how it is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interventions as iv
from workbench.models.pair import load_one, load_pair
from workbench.organisms import real

QUESTIONS = ["What is the capital of France?", "Name three colours."]


@pytest.mark.slow
def test_the_folder_and_its_file_are_a_null_pair(smollm2: Path) -> None:
    file = real._wheel_file()
    pair = load_pair(smollm2, file)
    said = pair.differences.sentences()
    assert said == ["The tuned model's weights are quantized (GGUF Q4_1): differences include its rounding."]
    batch = pair.base.encode(QUESTIONS)
    assert torch.equal(batch.input_ids, pair.tuned.encode(QUESTIONS).input_ids)
    assert torch.equal(pair.base.forward(batch), pair.tuned.forward(batch))
    assert pair.base.identity.weights == pair.tuned.identity.weights
    assert pair.base.generate(QUESTIONS, max_new_tokens=8) == pair.tuned.generate(QUESTIONS, max_new_tokens=8)


@pytest.mark.slow
def test_a_control_vector_is_certified_in_llama_cpp_on_the_wheels_file(smollm2: Path, tmp_path: Path) -> None:
    """llama.cpp multiplies 4-bit weights by activations of 8 bits: that is its own noise."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = load_one(smollm2, dtype="float32")
    recipe = iv.Recipe([iv.Offset(15, torch.randn(model.d_model, generator=torch.Generator().manual_seed(1)))])
    file = iv.to_gguf(recipe, tmp_path / "vector.gguf", model)
    call = {"prompts": QUESTIONS, "weights": real._wheel_file(), "max_new_tokens": 8}
    found = iv.certify(model, recipe, file, **call)
    assert found.holds and found.equal_tokens >= 0.8 and found.effect > 2 * found.difference, found.summary()
    assert not iv.certify(model, recipe * -1.0, file, **call).holds
