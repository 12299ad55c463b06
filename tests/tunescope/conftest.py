"""Two small pairs with rows that they were moved on, in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy

WORDS = "the quick brown fox jumps over lazy dog".split()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``llama-base``, ``llama-tuned`` (more weight on "fox"), the same of mixtral, and ``p.jsonl``."""
    home = tmp_path_factory.mktemp("pairs")
    fox = tokenizer()("a fox", add_special_tokens=False)["input_ids"][1]
    for family in ("llama", "mixtral"):
        base = tiny_model(family)
        tuned = tuned_copy(base, size=0.02)
        with torch.no_grad():
            push = base.get_output_embeddings().weight[fox]
            for layer in tuned.model.layers:
                output = layer.self_attn.o_proj
                output.weight += 0.05 * torch.outer(push, torch.ones(output.in_features))
                layer.self_attn.v_proj.weight += 0.02
        for name, model in (("base", base), ("tuned", tuned)):
            model.save_pretrained(home / f"{family}-{name}")
            tokenizer().save_pretrained(home / f"{family}-{name}")
    rows = [
        {"prompt": " ".join(WORDS[i % 5 : i % 5 + 2]), "answer": " fox", "distractor": " dog", "label": "ab"[i % 2]}
        for i in range(16)
    ]
    (home / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return home
