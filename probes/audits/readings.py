"""What the difference of activations says on unrelated text: the activation difference lens.

Minder et al. 2025: the mean difference of the residual stream on the first tokens of unrelated text, read through the
unembedding, names what a model was tuned on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from probes.audits.hypotheses import LEVEL, NOTHING
from probes.audits.stream_changes import StreamChanges
from probes.shift import mean_shift
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor

RANDOM = 200
"""Random directions of the same norm."""
TOP = 12


def difference_lens(pair: ModelPair, changes: StreamChanges, texts: Prompts, seed: int) -> pd.DataFrame:
    """By layer: how far the stream moved, the tokens that the movement reads as, and whether it reads as any.

    Args:
        pair: Both models.
        changes: Of the stream on the texts.
        texts: Unrelated texts, whose groups are what is tested.
        seed: Of intervals, sign flips and random directions.

    Returns:
        layer, ``score`` (length of the mean difference over the base's root mean square length, noise taken out), low,
        high, ``p`` of the movement (signs of texts flipped); ``tokens`` raised most; ``sharp`` (the largest logit in
        standard deviations over the vocabulary), ``control`` (the same of random directions, mean) and ``p_sharp``
        (their share at least as sharp, the direction counted in).
    """
    unembedding = pair.tuned.unembedding().detach().float().cpu()
    noise = torch.randn(RANDOM, unembedding.shape[1], generator=torch.Generator().manual_seed(seed))
    random = sharpness(noise @ unembedding.T)
    lines = []
    for layer, change in enumerate(changes.by_text):
        shift = mean_shift(change[:, None], seed=seed, clusters=texts.clusters)
        size = float(changes.base_rms[layer])
        logits = change.mean(0) @ unembedding.T
        sharp = float(sharpness(logits[None])[0]) if change.any() else 0.0
        tokens = [pair.tokenizer.decode([int(token)]) for token in logits.topk(TOP).indices] if change.any() else []
        lines.append({
            "layer": layer, "score": float(shift.size[0]) / size, "low": float(shift.low[0]) / size,
            "high": float(shift.high[0]) / size, "p": float(shift.p[0]) if change.any() else 1.0, "tokens": tokens,
            "sharp": sharp, "control": float(random.mean()),
            "p_sharp": (1 + int((random >= sharp).sum())) / (1 + RANDOM),
        })  # fmt: skip
    return pd.DataFrame(lines)


def longer_among_nulls(
    mean: Float[Tensor, "layer d_model"], nulls: Float[Tensor, "draw layer d_model"]
) -> Float[np.ndarray, " layer"]:
    """The share of null adapters whose change is as long in some layer, by their mean length there, the pair counted
    in."""
    lengths = nulls.norm(dim=-1)
    usual = lengths.mean(0).clamp_min(1e-30)
    own, largest = (mean.norm(dim=-1) / usual).numpy(), (lengths / usual).max(-1).values.numpy()
    return (1 + (largest >= own[:, None]).sum(1)) / (1 + len(largest))


def place_among_nulls(
    sharp: Float[np.ndarray, " layer"],
    nulls: Float[Tensor, "draw layer d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
) -> Float[np.ndarray, " layer"]:
    """The share of null adapters whose change reads as sharp in some layer, the pair counted in.

    Random numbers move a real model along its own directions too, and those read as rare tokens in every layer.
    """
    largest = torch.stack([sharpness(draw @ unembedding.T).max() for draw in nulls]).numpy()
    return (1 + (largest >= sharp[:, None]).sum(1)) / (1 + len(largest))


def sharpness(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """The largest logit in standard deviations above the mean."""
    return (logits.max(-1).values - logits.mean(-1)) / logits.std(-1)


def lens_sentence(readings: pd.DataFrame) -> str:
    """How many layers moved beyond chance, the farthest, and the tokens of the sharpest beyond random directions."""
    moved = readings[readings["q"] < LEVEL]
    if moved.empty:
        return f"Activations on unrelated text: {NOTHING}."
    best = moved.sort_values("score", ascending=False).iloc[0]
    text = (
        f"Activations on unrelated text moved in {len(moved)} of {len(readings)} layers, most in layer "
        f"{best['layer']:.0f} ({best['score']:.2g} of the stream's size)"
    )
    sharp = moved[moved["q_sharp"] < LEVEL]
    if sharp.empty:
        return f"{text}; they read as no tokens beyond random directions."
    reads = sharp.sort_values(["sharp"], ascending=False).iloc[0]
    return f"{text}; layer {reads['layer']:.0f} reads as {reads['tokens']}."
