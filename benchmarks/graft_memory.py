"""Memory of a graft in copies of the tuned weights, each method in a fresh process (bar: 4 with both models).

Held are base, tuned, logits in float32 and slopes in float16: 3.5 copies of float32 weights, and a few tensors at a
time. Measured is resident memory, with an allocator that returns what is freed at once (MALLOC_MMAP_THRESHOLD_); some
10 MB of code and buffers that running any model brings in are counted too. What a batch leaves for its backward pass is
in it, and kept small: one prompt. The answers are the tuned model's own, so that it is right and its base is not; a few
epochs are enough, since every epoch holds the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from benchmarks.weight_delta import peak, reset_peak
from probes.grafting.graft import graft
from tests.tiny import tokenizer, tuned_copy
from workbench.models.pair import ModelPair, load_pair

ROOT = Path(__file__).resolve().parents[1]
LAYERS, WIDTH, INNER = 6, 640, 1728
EPOCHS, BATCH = 3, 1
METHODS = ("optimised", "adaptive")
WORDS = "the quick brown fox jumps over lazy dog hello world this is a test".split()


def make_pair() -> ModelPair:
    """A random Llama and a copy that moved."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=10,
        num_key_value_heads=10, vocab_size=len(tokenizer()), tie_word_embeddings=True,
    )  # fmt: skip
    base = tf.LlamaForCausalLM(config).eval()
    return load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)


def make_rows(pair: ModelPair, count: int = 64) -> list[dict[str, str]]:
    """Prompts with two answers; the right one is what the tuned model says."""
    prompts = [" ".join(WORDS[(i * j + i) % len(WORDS)] for j in range(1, 7)) for i in range(count)]
    fox, other = (pair.tokenizer.encode(word, add_special_tokens=False)[-1] for word in (" fox", " dog"))
    with torch.no_grad():
        logits = torch.cat(
            [pair.tuned.forward(pair.tuned.encode([prompt]), logits="last")[:, -1] for prompt in prompts]
        )
    first = (logits[:, fox] - logits[:, other]).sub(float((logits[:, fox] - logits[:, other]).median())) > 0
    answers = [(" fox", " dog") if yes else (" dog", " fox") for yes in first.tolist()]
    return [{"prompt": p, "answer": a, "distractor": d} for p, (a, d) in zip(prompts, answers, strict=True)]


def copies(method: str) -> dict[str, float]:
    """What a search adds at its peak, and the whole with both models, in copies of the tuned weights."""
    pair = make_pair()
    rows = make_rows(pair)
    size = sum(parameter.nbytes for parameter in pair.tuned.inner.parameters()) / 1e6
    start = reset_peak()
    graft(pair, rows, method=method, epochs=EPOCHS, batch_size=BATCH, sparsities=(0.01, 0.1, 1.0), draws=1)
    grown = (peak() - start) / size
    return {"weights_mb": round(size, 1), "search_adds": round(grown, 2), "with_both_models": round(2 + grown, 2)}


def measure() -> dict[str, Any]:
    """Each method by itself, so that none inherits another's memory."""
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0",
    }  # fmt: skip
    figures: dict[str, Any] = {
        "what": f"graft over single entries, {LAYERS} layers x {WIDTH}, in copies of the weights"
    }
    for method in METHODS:
        code = f"import json, benchmarks.graft_memory as b; print(json.dumps(b.copies({method!r})))"
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
        )  # fmt: skip
        figures[method] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
