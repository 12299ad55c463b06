"""Which latents tell labelled prompts apart, beside the difference of means; chosen and scored on different prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from probes.concepts.dictionary import Dictionary
from probes.dictionaries.streaming import SiteRows
from probes.linear.folds import two_classes
from probes.resampling import bootstrap_weights, interval, shuffled_labels
from workbench.errors import UserError
from workbench.typing import Bool, Float, Int

SHOWN = 10
SHUFFLES = 20
MEANS = ("difference of means, mean token", "difference of means, greatest token")
"""The peers: one direction, read in the two ways that a prompt's tokens can be pooled."""


def auroc(scores: Float[np.ndarray, "prompt cell"], positive: Bool[np.ndarray, " prompt"]) -> np.ndarray:
    """Area under the ROC curve of every column; ties count half; NaN where a class is empty."""
    n, wanted = len(positive), int(positive.sum())
    if wanted in (0, n):
        return np.full(scores.shape[1], np.nan)
    ranks = rankdata(scores, axis=0)[positive].sum(0)
    return np.asarray((ranks - wanted * (wanted + 1) / 2) / (wanted * (n - wanted)))


@torch.no_grad()
def label_features(
    rows: SiteRows, dictionary: Dictionary, labels: Sequence[Any], draws: int, seed: int
) -> pd.DataFrame:
    """AUROC of the latents that follow the labels best, and of the difference of means, on held-out prompts.

    Latents (their greatest activation over a prompt's tokens) and the difference of means (of the tuned model's mean
    activations; read as a prompt's mean and as its greatest token) are chosen on the training prompts. Columns:
    feature, latent, auroc, low, high, train, control (the latent that follows shuffled labels
    best, mean over 20 shuffles).
    """
    labelled = np.array([number for number in np.unique(rows.prompt) if _labelled(labels[int(number)])], dtype=np.int64)
    pooled, means, prompts = _pooled(rows, dictionary, labelled)
    positive = two_classes([labels[int(prompt)] for prompt in prompts])[0]
    tested = np.isin(prompts, rows.prompt[rows.test])
    cluster = _cluster_of(rows, prompts)
    for name, part in (("training", ~tested), ("held-out", tested)):
        if len(set(positive[part].tolist())) < 2:
            raise UserError(f"The {name} prompts are all of one class: record more labelled prompts of both classes.")
    on_train = auroc(pooled[~tested], positive[~tested])
    order = np.argsort(-np.abs(on_train - 0.5), kind="stable")[:SHOWN]
    towards = means[~tested][positive[~tested]].mean(0) - means[~tested][~positive[~tested]].mean(0)
    signed = np.where(on_train[order] >= 0.5, 1.0, -1.0)
    along = _greatest(rows, prompts, towards)
    scores = np.column_stack([pooled[:, order] * signed, means @ towards, along])
    held = scores[tested]
    low, high = _interval(held, positive[tested], cluster[tested], draws, seed)
    trained = auroc(scores[~tested], positive[~tested])
    control = _shuffled(pooled, positive, tested, cluster, seed)
    return pd.DataFrame(
        {
            "feature": [*(f"latent {latent}" for latent in order), *MEANS],
            "latent": pd.array([*(int(latent) for latent in order), None, None], dtype="Int64"),
            "auroc": auroc(held, positive[tested]),
            "low": low,
            "high": high,
            "train": trained,
            "control": control,
        }
    )


def _labelled(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _pooled(
    rows: SiteRows, dictionary: Dictionary, labelled: Int[np.ndarray, " labelled"]
) -> tuple[Float[np.ndarray, "prompt latent"], Float[np.ndarray, "prompt d"], Int[np.ndarray, " prompt"]]:
    """Per labelled prompt: each latent's greatest activation, and the tuned model's mean activation."""
    places = np.sort(np.concatenate([rows.train, rows.test]))
    places = places[np.isin(rows.prompt[places], labelled)]
    if not len(places):
        raise UserError("No recorded prompt has a label: name a column of the recorded prompts as labels.")
    prompts, number = np.unique(rows.prompt[places], return_inverse=True)
    greatest = torch.zeros(len(prompts), len(dictionary.decoder))
    sums, counts = torch.zeros(len(prompts), rows.d_model), np.bincount(number)
    done = 0
    for part in rows.chunks(places):
        of = torch.from_numpy(number[done : done + len(part)])
        codes = dictionary.encode(rows.pair(part)[0])
        greatest.scatter_reduce_(0, of[:, None].expand_as(codes), codes, "amax")
        sums.index_add_(0, of, rows.sides(part)[1])
        done += len(part)
    return greatest.numpy(), (sums / torch.from_numpy(counts)[:, None]).numpy(), prompts


def _greatest(
    rows: SiteRows, prompts: Int[np.ndarray, " prompt"], direction: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " prompt"]:
    """Each prompt's greatest projection of a tuned row on ``direction``."""
    places = np.sort(np.concatenate([rows.train, rows.test]))
    places = places[np.isin(rows.prompt[places], prompts)]
    number, along = np.searchsorted(prompts, rows.prompt[places]), torch.from_numpy(direction)
    greatest = np.full(len(prompts), -np.inf)
    done = 0
    for part in rows.chunks(places):
        np.maximum.at(greatest, number[done : done + len(part)], (rows.sides(part)[1] @ along).numpy())
        done += len(part)
    return greatest


def _cluster_of(rows: SiteRows, prompts: Int[np.ndarray, " prompt"]) -> Int[np.ndarray, " prompt"]:
    names, first = np.unique(rows.prompt, return_index=True)
    return rows.cluster[first][np.searchsorted(names, prompts)]


def _interval(
    scores: np.ndarray, positive: np.ndarray, cluster: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    weights = bootstrap_weights(len(positive), draws, seed, cluster).astype(int)
    drawn = [np.repeat(np.arange(len(positive)), times) for times in weights]
    return interval(np.stack([auroc(scores[rows], positive[rows]) for rows in drawn]))


def _shuffled(pooled: np.ndarray, positive: np.ndarray, tested: np.ndarray, cluster: np.ndarray, seed: int) -> float:
    """Held-out AUROC of the latent that follows shuffled training labels best, its sign taken from them too."""
    scores = []
    for labels in shuffled_labels(positive[~tested].astype(int), SHUFFLES, seed, cluster[~tested]) == 1:
        fits = auroc(pooled[~tested], labels)
        best = int(np.nanargmax(np.abs(fits - 0.5)))
        value = float(auroc(pooled[tested][:, [best]], positive[tested])[0])
        scores.append(value if fits[best] >= 0.5 else 1 - value)
    return float(np.mean(scores))
