"""SmolLM2-135M-Instruct and its shipped LoRA in vLLM: logits and tokens are those of Hugging Face, steered or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interventions as iv
import workbench as wb
from workbench.organisms.real_organisms import SHIPPED

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
CHATS = [{"messages": [{"role": "user", "content": text}]} for text in ("What is a monkey?", "Name three colours.")]


def test_base_and_lora_are_certified_in_one_engine(smollm2: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    pair = wb.load_pair(smollm2, SHIPPED / "smol-refusal" / "tuned", device="cpu", dtype="float32")
    vector = torch.randn(pair.base.d_model, generator=torch.Generator().manual_seed(1))
    recipe = iv.Recipe([iv.Offset(15, 0.3 * vector, positions="last+generated")])
    with wb.on_vllm(pair, max_model_len=128, max_num_seqs=4):
        for side in (pair.base, pair.tuned):
            found = iv.certify(side, recipe, "vllm", CHATS, max_new_tokens=8)
            assert found.holds and found.equal_tokens == 1 and found.difference < 1e-3 < found.effect, found.summary()
