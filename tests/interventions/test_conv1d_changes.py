"""Adapters of GPT-2, which keeps its weights as [in, out]: square matrices must not be taken transposed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from interventions.weightspace.graft import Graft
from interventions.weightspace.task_vector import TaskVector
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.models.pair import load_pair


@pytest.mark.parametrize("target", ["attn.c_proj", "mlp.c_proj", "c_attn"])
def test_the_change_on_the_base_is_the_adapter(target: str) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=[target], init_lora_weights=False, fan_in_fan_out=True)
    tuned = get_peft_model(tiny_model("gpt2"), config).eval()
    pair = load_pair(tiny_model("gpt2"), tuned, device="cpu", tokenizer=tokenizer(), check=False)
    ids = token_batch()
    with torch.no_grad():
        wanted = pair.tuned.forward(ids)
        with TaskVector.from_pair(pair).graft(pair.base).entered(pair.base):
            assert torch.allclose(pair.base.forward(ids), wanted, atol=1e-4)  # type: ignore[arg-type]
        with Graft.from_pair(pair).entered(pair.base):
            assert torch.allclose(pair.base.forward(ids), wanted, atol=1e-4)  # type: ignore[arg-type]
