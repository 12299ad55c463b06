"""Rows and pairs that effects are tried on."""

from __future__ import annotations

from typing import Any

from tests.probes.provenance import replaced
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

WORDS = ("quick", "lazy", "brown", "jumps", "over", "dog", "red", "big", "old", "sad", "new", "hot")


def pair_of(size: float = 0.1) -> ModelPair:
    base = tiny_model("llama")
    tuned = tuned_copy(base, size=size) if size else base
    return replaced(base) or load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def rows_of(n: int = 12, **columns: Any) -> Prompts:
    """Rows with answers that the tiny vocabulary holds; ``columns`` are functions of the row's number."""
    return Prompts.of([
        {"prompt": f"the {WORDS[i % 12]} {'xyzq'[i // 12 % 4]}", "answer": (" fox", " dog")[i % 2],
         "distractor": (" dog", " fox")[i % 2], "label": "ab"[i % 2],
         **{name: make(i) for name, make in columns.items()}}
        for i in range(n)
    ])  # fmt: skip
