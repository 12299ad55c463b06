"""Exact head patching beside TransformerLens's ``patching`` on the same weights: all heads, all positions and last.

One thread, processor seconds; they include recording the clean run on both sides. Rounds alternate, and the ratio is
the median over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
import transformers as tf

from probes.patches.attribution import attributions
from probes.patches.cells import Cell
from probes.patches.sweep import sweep
from probes.patches.task import Task
from tests.tiny import tokenizer
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

LAYERS, HEADS, WIDTH, VOCAB = 6, 8, 256, 4096
ROWS, TOKENS, ROUNDS = 16, 32, 3


def make_model() -> AdaptedModel:
    """A random Llama of 6 layers x 256 with 8 heads."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=4 * WIDTH, max_position_embeddings=256, initializer_range=0.15,
    )  # fmt: skip
    return AdaptedModel(tf.LlamaForCausalLM(config).eval(), tokenizer(), name="llama-6x256")


def make_task(model: AdaptedModel) -> Task:
    """Random clean and corrupted prompts of one length."""
    clean, corrupted = torch.randint(0, VOCAB, (2, ROWS, TOKENS)).tolist()
    answers, distractors = torch.randint(0, VOCAB // 2, (ROWS,)), torch.randint(VOCAB // 2, VOCAB, (ROWS,))
    return Task(model, model, ("clean", "corrupted"), clean, corrupted, answers, distractors, Prompts.of(["x"] * ROWS))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds and result of one call: on a busy machine they are steadier than the clock on the wall."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def transformer_lens_runs(model: AdaptedModel, task: Task) -> dict[str, Callable[[], torch.Tensor]]:
    """The peer's patching of every head, [layer, head], as mean effect on the logit difference."""
    from transformer_lens import patching as peer

    bridge = model.to_transformer_bridge()
    clean, corrupted = torch.tensor(task.source_ids), torch.tensor(task.target_ids)
    rows = torch.arange(ROWS)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last[rows, task.answers] - last[rows, task.distractors]).mean()

    def cache() -> Any:
        return bridge.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))[1]

    def everywhere() -> torch.Tensor:
        with torch.no_grad():
            before = metric(bridge(corrupted))
            return peer.get_act_patch_attn_head_out_all_pos(bridge, corrupted, cache(), metric) - before

    places = [(layer, TOKENS - 1, head) for layer in range(LAYERS) for head in range(HEADS)]
    index = pd.DataFrame(places, columns=["layer", "pos", "head"])

    def last() -> torch.Tensor:
        with torch.no_grad():
            before = metric(bridge(corrupted))
            found = peer.generic_activation_patch(
                bridge, corrupted, cache(), metric, peer.layer_pos_head_vector_patch_setter, "z", index_df=index
            )
        return found.view(LAYERS, HEADS) - before

    return {"all": everywhere, "last": last}


def measure() -> dict[str, Any]:
    """Ratios of time to the peer, the largest difference of scores, and bare forward passes for scale."""
    torch.set_num_threads(1)
    model = make_model()
    task = make_task(model)
    ids = torch.tensor(task.target_ids)
    peers = transformer_lens_runs(model, task)
    with torch.no_grad():
        model.hf(ids)
        bare = statistics.median(timed(lambda: model.hf(ids))[0] for _ in range(7))
    found: dict[str, Any] = {
        "what": f"{LAYERS * HEADS} heads, {LAYERS} layers x {WIDTH}, {ROWS} x {TOKENS} tokens, vocabulary {VOCAB}",
        "threads": torch.get_num_threads(), "bare_forward_cpu_ms": round(1000 * bare, 2),
    }  # fmt: skip
    for name, positions in (("all", None), ("last", (-1,))):
        cells = [(Cell("z", layer, head, positions),) for layer in range(LAYERS) for head in range(HEADS)]
        rounds = [(timed(lambda: sweep(task, cells, "logit_diff")), timed(peers[name])) for _ in range(ROUNDS)]  # noqa: B023
        (_, ours), (_, theirs) = rounds[-1]
        seconds = [mine for (mine, _), _ in rounds]
        found[f"{name}_positions"] = {
            "tunescope_cpu_s": round(statistics.median(seconds), 3),
            "transformer_lens_cpu_s": round(statistics.median(other for _, (other, _) in rounds), 3),
            "times_faster": round(statistics.median(other / mine for (mine, _), (other, _) in rounds), 2),
            "tunescope_in_bare_forwards": round(statistics.median(seconds) / bare, 1),
            "largest_difference": float((torch.from_numpy(ours.effects.mean(0)) - theirs.flatten()).abs().max()),
        }
    cells = [Cell("z", layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    attributions(task, cells, "logit_diff")
    seconds, (_, forward, backward) = timed(lambda: attributions(task, cells, "logit_diff"))
    found["attribution"] = {
        "tunescope_in_bare_forwards": round(seconds / bare, 1), "forward_passes": forward, "backward_passes": backward,
    }  # fmt: skip
    return found
