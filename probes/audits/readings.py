"""What the difference of activations says on unrelated text: the activation difference lens.

Minder et al. 2025: the mean difference of the residual stream on the first tokens of unrelated text, read through the
unembedding, names what a model was tuned on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.audits.hypotheses import LEVEL, NOTHING
from probes.audits.stream_changes import StreamChanges
from probes.shift import mean_shift
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Int, Tensor

RANDOM = 200
"""Random directions of the same norm."""
TOP = 12
BY_POSITION = [
    "layer", "position", "texts", "score", "low", "high", "p", "tokens", "sharp", "control", "p_sharp", "q", "q_sharp",
]  # fmt: skip
"""Columns of the lens by layer and position."""


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
    reader = _Reader.of(pair, seed)
    return pd.DataFrame([
        {"layer": layer, **reader.line(change, float(changes.base_rms[layer]), texts.clusters)}
        for layer, change in enumerate(changes.by_text)
    ])  # fmt: skip


def position_lens(pair: ModelPair, changes: StreamChanges, texts: Prompts, seed: int) -> pd.DataFrame:
    """:func:`difference_lens` by layer and position, with ``texts``, how many are read there; where two groups are."""
    reader, lines = _Reader.of(pair, seed), []
    for position, at in changes.by_position.items():
        clusters = texts.clusters[changes.texts_at(position)]
        if len(np.unique(clusters)) > 1:
            lines += [
                {"layer": layer, "position": position, "texts": len(clusters),
                 **reader.line(change, float(changes.base_rms[layer]), clusters)}
                for layer, change in enumerate(at)
            ]  # fmt: skip
    return pd.DataFrame(lines, columns=None if lines else BY_POSITION)


@dataclass(frozen=True)
class _Reader:
    """Reads changes of the stream through an unembedding, beside random directions."""

    unembedding: Float[Tensor, "vocab d_model"]
    random: Float[Tensor, " draw"]
    """How sharply random directions read."""
    tokenizer: Any
    seed: int

    @classmethod
    def of(cls, pair: ModelPair, seed: int) -> _Reader:
        unembedding = pair.tuned.unembedding().detach().float().cpu()
        noise = torch.randn(RANDOM, unembedding.shape[1], generator=torch.Generator().manual_seed(seed))
        return cls(unembedding, sharpness(noise @ unembedding.T), pair.tokenizer, seed)

    def line(
        self, change: Float[Tensor, "text d_model"], size: float, clusters: Int[np.ndarray, " text"]
    ) -> dict[str, Any]:
        """How far one layer's stream moved, and what that reads as."""
        shift = mean_shift(change[:, None], seed=self.seed, clusters=clusters)
        logits, moved = change.mean(0) @ self.unembedding.T, bool(change.any())
        sharp = float(sharpness(logits[None])[0]) if moved else 0.0
        top = logits.topk(TOP).indices.tolist() if moved else []
        return {
            "score": float(shift.size[0]) / size, "low": float(shift.low[0]) / size,
            "high": float(shift.high[0]) / size, "p": float(shift.p[0]) if moved else 1.0,
            "tokens": [self.tokenizer.decode([token]) for token in top],
            "sharp": sharp, "control": float(self.random.mean()),
            "p_sharp": (1 + int((self.random >= sharp).sum())) / (1 + RANDOM),
        }  # fmt: skip


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


def lens_sentence(readings: pd.DataFrame, positions: pd.DataFrame) -> str:
    """How many layers moved beyond chance, the farthest and its position, and the tokens of the sharpest beyond random
    directions."""
    moved = readings[readings["q"] < LEVEL]
    if moved.empty:
        return f"Activations on unrelated text: {NOTHING}."
    best = moved.sort_values("score", ascending=False).iloc[0]
    layer = int(best["layer"])
    text = (
        f"Activations on unrelated text moved in {len(moved)} of {len(readings)} layers, most in layer {layer} "
        f"({best['score']:.2g} of the stream's size{_farthest(positions, layer)})"
    )
    sharp = moved[moved["q_sharp"] < LEVEL]
    if sharp.empty:
        return f"{text}; they read as no tokens beyond random directions."
    reads = sharp.sort_values(["sharp"], ascending=False).iloc[0]
    return f"{text}; layer {reads['layer']:.0f} reads as {reads['tokens']}."


def _farthest(positions: pd.DataFrame, layer: int) -> str:
    """At which position the layer moved most, where one moved beyond chance."""
    there = positions[(positions["layer"] == layer) & (positions["q"] < LEVEL)] if len(positions) else positions
    if there.empty:
        return ""
    best = there.sort_values("score", ascending=False).iloc[0]
    return f"; {best['score']:.2g} at position {best['position']:.0f}"
