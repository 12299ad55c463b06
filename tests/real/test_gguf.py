"""The wheel's own GGUF file beside the folder that was unpacked from it: the same model, and told how it is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workbench.models.pair import load_pair
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
