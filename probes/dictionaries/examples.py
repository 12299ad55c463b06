"""Where latents fire most: the strongest rows of each, kept while the rows stream by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from probes.concepts.contexts import extreme_contexts
from probes.concepts.dictionary import Dictionary
from probes.dictionaries.streaming import SiteRows
from workbench.typing import Float, Int, Tensor

SPARE = 4
"""Rows kept for each example that is shown, since one prompt shows only one."""


@torch.no_grad()
def top_examples(
    rows: SiteRows, dictionary: Dictionary, latents: list[int], index: pd.DataFrame, count: int
) -> pd.DataFrame:
    """The ``count`` held-out contexts where each latent fires most; columns: latent, value, prompt, position,
    context (the token between » and «)."""
    columns = ["latent", "value", "prompt", "position", "context"]
    if not latents or not count:
        return pd.DataFrame(columns=columns)
    best = _strongest(rows, dictionary, latents, count * SPARE)
    places = np.unique(np.concatenate(best))
    values = torch.cat([_activations(rows, dictionary, latents, part) for part in rows.chunks(places)])
    shown = extreme_contexts(values, index, count, places)
    shown = shown[(shown["end"] == "highest") & (shown["value"] > 0)]
    return shown.assign(latent=[latents[place] for place in shown["direction"]])[columns].reset_index(drop=True)


def _activations(
    rows: SiteRows, dictionary: Dictionary, latents: list[int], part: Int[np.ndarray, " row"]
) -> Float[Tensor, "row k"]:
    return dictionary.encode(rows.pair(part)[0])[:, latents]


def _strongest(rows: SiteRows, dictionary: Dictionary, latents: list[int], count: int) -> list[np.ndarray]:
    """Row numbers of the ``count`` highest activations of each latent."""
    values = torch.zeros(0, len(latents))
    places = torch.zeros(0, len(latents), dtype=torch.long)
    for part in rows.chunks(rows.test):
        activations = _activations(rows, dictionary, latents, part)
        numbers = torch.from_numpy(part)[:, None].expand(-1, len(latents))
        values, places = torch.cat([values, activations]), torch.cat([places, numbers])
        top = values.topk(min(count, len(values)), dim=0)
        values, places = top.values, places.gather(0, top.indices)
    return [places[:, column].numpy() for column in range(len(latents))]
