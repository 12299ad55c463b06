"""A base and a LoRA that changes it, in folders, as vLLM reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_lora_pair(folder: Path, base: Any, words: Any) -> tuple[Path, Path]:
    """Save ``base`` with the tokenizer ``words``, and a LoRA on it; the two folders."""
    from peft import LoraConfig, get_peft_model

    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"
