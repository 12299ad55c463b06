"""Counting experts over prompts beside a bare forward pass of the same batches (bar: at most 1.1 times).

One thread, processor seconds: on a busy machine they are steadier than the clock on the wall. Rounds alternate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from probes.experts.counting import content, count_experts
from tests.tiny import tokenizer
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import batches, pad_left

LAYERS, EXPERTS, TOP, WIDTH = 6, 32, 4, 256
PROMPTS, TOKENS, BATCH, ROUNDS = 64, 64, 16, 7


def make_model() -> AdaptedModel:
    """A random Qwen3-MoE of 6 layers x 32 experts."""
    torch.manual_seed(0)
    config = tf.Qwen3MoeConfig(
        vocab_size=4096, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=4,
        head_dim=32, num_experts=EXPERTS, num_experts_per_tok=TOP, moe_intermediate_size=128, norm_topk_prob=True,
    )  # fmt: skip
    return AdaptedModel(tf.Qwen3MoeForCausalLM(config).eval(), tokenizer(), name="qwen3moe-6x32")


def seconds(run: Callable[[], Any]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure() -> dict[str, Any]:
    """Time of the counting pass over time of a bare pass, with and without the bare model's vocabulary projection."""
    torch.set_num_threads(1)
    model = make_model()
    rows = torch.randint(3, 4096, (PROMPTS, TOKENS)).tolist()
    masks = [content(rows, "none", [])]

    def bare(body: Any) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                for members in batches([TOKENS] * PROMPTS, BATCH):
                    body(pad_left([rows[row] for row in members], 0).input_ids)

        return run

    whole, body = bare(model.hf), bare(model.hf.model)
    count_experts(model, rows, masks, batch_size=BATCH)
    rounds = [
        (seconds(whole), seconds(lambda: count_experts(model, rows, masks, batch_size=BATCH)), seconds(body))
        for _ in range(ROUNDS)
    ]
    return {
        "what": f"{PROMPTS} x {TOKENS} tokens, {LAYERS} layers x {EXPERTS} experts (top {TOP}), width {WIDTH}",
        "bare_forward_cpu_s": round(statistics.median(a for a, _, _ in rounds), 3),
        "counting_cpu_s": round(statistics.median(b for _, b, _ in rounds), 3),
        "times_a_bare_forward": round(statistics.median(b / a for a, b, _ in rounds), 3),
        "times_a_forward_without_vocabulary": round(statistics.median(b / c for _, b, c in rounds), 3),
    }
