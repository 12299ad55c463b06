"""Head patching beside TransformerLens's on the same weights: exact (all positions and the last), and by gradients.

One thread and processor seconds on a CPU, seconds by the clock on a GPU; they include recording the clean run on both
sides. Rounds alternate, and the ratio is the median over rounds. Passes are counted on the models.
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
ROWS, TOKENS = 16, 32
ROUNDS = {"all": 3, "last": 3, "attribution": 15}
"""What is measured, and how often."""


def make_model(device: str) -> AdaptedModel:
    """A random Llama of 6 layers x 256 with 8 heads."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=4 * WIDTH, max_position_embeddings=256, initializer_range=0.15,
    )  # fmt: skip
    return AdaptedModel(tf.LlamaForCausalLM(config).eval().to(device), tokenizer(), name="llama-6x256")


def make_task(model: AdaptedModel) -> Task:
    """Random clean and corrupted prompts of one length."""
    clean, corrupted = torch.randint(0, VOCAB, (2, ROWS, TOKENS)).tolist()
    answers, distractors = torch.randint(0, VOCAB // 2, (ROWS,)), torch.randint(VOCAB // 2, VOCAB, (ROWS,))
    return Task(model, model, ("clean", "corrupted"), clean, corrupted, answers, distractors, Prompts.of(["x"] * ROWS))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call: of the processor, which on a busy machine are steadier than the clock on the
    wall, or with a GPU by the clock until it is done."""
    clock = time.perf_counter if torch.cuda.is_initialized() else time.process_time
    start = clock()
    scores = run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock() - start, scores


def passes_of(hf: Any, run: Callable[[], Any]) -> dict[str, int]:
    """How often ``run`` calls the model, and how often gradients come back to its logits."""
    figures = {"forward": 0, "backward": 0}

    def count(way: str) -> None:
        figures[way] += 1

    def after(_module: Any, _args: Any, out: Any) -> None:
        if out.logits.requires_grad:
            out.logits.register_hook(lambda _gradient: count("backward"))

    handles = [hf.register_forward_pre_hook(lambda *_: count("forward")), hf.register_forward_hook(after)]
    run()
    for handle in handles:
        handle.remove()
    return figures


def transformer_lens_runs(bridge: Any, task: Task) -> dict[str, Callable[[], torch.Tensor]]:
    """The peer's patching of every head, [layer, head], as mean effect on the logit difference."""
    from transformer_lens import patching as peer
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    device = task.target.device
    clean, corrupted = torch.tensor(task.source_ids, device=device), torch.tensor(task.target_ids, device=device)
    rows = torch.arange(ROWS, device=device)
    answers, distractors = task.answers.to(device), task.distractors.to(device)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last[rows, answers] - last[rows, distractors]).mean()

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
            activation_patch = peer.generic_activation_patch(
                bridge, corrupted, cache(), metric, peer.layer_pos_head_vector_patch_setter, "z", index_df=index
            )
        return activation_patch.view(LAYERS, HEADS) - before

    def by_gradients() -> torch.Tensor:
        """Its ``attribution_patch`` runs prompt by prompt; its parts take a whole batch, which is faster. They find no
        gradient at the first hook unless that is the embedding."""
        sites = [f"blocks.{layer}.attn.hook_z" for layer in range(LAYERS)]
        with torch.no_grad():
            theirs = cache_activation_and_gradient(bridge, clean, metric, sites, compute_gradient=False).activations
        ours = cache_activation_and_gradient(bridge, corrupted, metric, ["hook_embed", *sites])
        products = [(theirs[name] - ours.activations[name]) * ours.gradients[name] for name in sites]
        return torch.stack([product.sum((0, 1, 3)) for product in products])

    return {"all": everywhere, "last": last, "attribution": by_gradients}


def tunescope_runs(task: Task) -> dict[str, Callable[[], torch.Tensor]]:
    """The same from our functions."""

    def exact(positions: tuple[int, ...] | None) -> torch.Tensor:
        cells = [(Cell("z", layer, head, positions),) for layer in range(LAYERS) for head in range(HEADS)]
        return torch.from_numpy(sweep(task, cells, "logit_diff").effects.mean(0)).view(LAYERS, HEADS)

    def by_gradients() -> torch.Tensor:
        cells = [Cell("z", layer, head) for layer in range(LAYERS) for head in range(HEADS)]
        return torch.from_numpy(attributions(task, cells, "logit_diff")[0].mean(0)).view(LAYERS, HEADS)

    return {"all": lambda: exact(None), "last": lambda: exact((-1,)), "attribution": by_gradients}


def measure(device: str = "cpu") -> dict[str, Any]:
    """Ratios of time to the peer, the largest difference of scores, passes, and bare forward passes for scale."""
    torch.set_num_threads(1)
    model = make_model(device)
    task = make_task(model)
    bridge = model.to_transformer_bridge()
    ours, theirs = tunescope_runs(task), transformer_lens_runs(bridge, task)
    ids = torch.tensor(task.target_ids, device=device)
    with torch.no_grad():
        model.hf(ids)
        bare = statistics.median(timed(lambda: model.hf(ids))[0] for _ in range(7))
    figures: dict[str, Any] = {
        "what": f"{LAYERS * HEADS} heads, {LAYERS} layers x {WIDTH}, {ROWS} x {TOKENS} tokens, vocabulary {VOCAB}",
        "device": torch.cuda.get_device_name(device) if model.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "bare_forward_ms": round(1000 * bare, 2),
    }  # fmt: skip
    for name, rounds in ROUNDS.items():
        ours[name](), theirs[name]()  # the first call pays for start-up
        pairs = [(timed(ours[name]), timed(theirs[name])) for _ in range(rounds)]
        (_, scores), (_, peers) = pairs[-1]
        seconds = [mine for (mine, _), _ in pairs]
        figures[name] = {
            "tunescope_s": round(statistics.median(seconds), 4),
            "transformer_lens_s": round(statistics.median(other for _, (other, _) in pairs), 4),
            "times_faster": round(statistics.median(other / mine for (mine, _), (other, _) in pairs), 2),
            "tunescope_in_bare_forwards": round(statistics.median(seconds) / bare, 1),
            "largest_difference": float((scores - peers.cpu()).abs().max()),
            "largest_score": float(scores.abs().max()),
        }
    figures["attribution"]["tunescope_passes"] = passes_of(model.hf, ours["attribution"])
    figures["attribution"]["transformer_lens_passes"] = passes_of(bridge.original_model, theirs["attribution"])
    return figures
