"""Whether steering keeps anything per generated token: peak memory at few and at many new ones, in fresh processes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.memory import in_fresh_process, peak, reset_peak
from interventions.offset import Offset
from interventions.recipe import Recipe
from workbench.models.adapted import AdaptedModel

FEW, MANY, BATCH = 16, 256, 16


def growth(*, width: int, repeats: int = 3) -> dict[str, Any]:
    """Megabytes that the peak rises by from :data:`FEW` to :data:`MANY` new tokens: plain, and steered on every layer.

    One tensor kept per token at every layer (``kept_would_be``) would add to the steered figure.
    """
    figures: dict[str, list[float]] = {"plain": [], "steered": []}
    for _ in range(repeats):
        for name, rises in figures.items():
            few, many = (
                in_fresh_process(__name__, "peak_of", steered=name == "steered", tokens=tokens, width=width)
                for tokens in (FEW, MANY)
            )
            rises.append(round(many - few, 1))
    layers = 8
    return {**figures, "kept_would_be": round(layers * BATCH * width * 4 * (MANY - FEW) / 1e6, 1)}


def peak_of(*, steered: bool, tokens: int, width: int) -> float:
    """Peak resident megabytes while ``tokens`` new tokens are generated for :data:`BATCH` prompts, above idle."""
    from benchmarks.steer import Size, generator, llama

    torch.set_num_threads(1)
    size = Size(width=width, tokens=tokens)
    hf = llama(size)
    vectors = torch.randn(size.layers, width, generator=torch.Generator().manual_seed(2))
    recipe = Recipe([Offset(layer, vector) for layer, vector in enumerate(vectors)] if steered else [])
    run, model = generator(hf, BATCH, tokens), AdaptedModel(hf, None)
    generator(hf, BATCH, 2)()
    idle = reset_peak()
    with recipe.applied(model):
        run()
    return peak() - idle
