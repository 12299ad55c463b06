"""What the difference of activations says on unrelated text (activation difference lens), and which tokens rise there.

Minder et al. 2025: the mean difference of the residual stream on the first tokens of unrelated text, read through the
unembedding, names what a model was tuned on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.shift import mean_shift
from workbench.behaviour.subject import Subject, Work, padded
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.recording.record_pair import record
from workbench.stats.bootstrap import mean_interval
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Tensor

FIRST = 5
"""Tokens of a text that are read."""
RANDOM = 200
"""Random directions of the same norm."""
TOP = 12


def difference_lens(pair: ModelPair, texts: Prompts, seed: int, progress: Progress | None) -> pd.DataFrame:
    """By layer: how far the stream moved, the tokens that the movement reads as, and whether it reads as any.

    Returns:
        layer, ``score`` (length of the mean difference over the base's root mean square length, noise taken out), low,
        high, ``p`` of the movement (signs of texts flipped); ``tokens`` raised most; ``sharp`` (the largest logit in
        standard deviations over the vocabulary), ``control`` (the same of random directions, mean) and ``p_sharp``
        (their share at least as sharp, the direction counted in).
    """
    recording = record(pair, texts, "resid_post", positions=list(range(FIRST)), progress=progress)
    unembedding = pair.tuned.unembedding().detach().float().cpu()
    noise = torch.randn(RANDOM, unembedding.shape[1], generator=torch.Generator().manual_seed(seed))
    random = sharpness(noise @ unembedding.T)
    numbers = recording.index["prompt"].to_numpy()
    lines = []
    for layer, name in enumerate(recording.sites):
        base, tuned = (recording[role][name].float() for role in ("base", "tuned"))
        change = torch.stack([(tuned - base)[numbers == text].mean(0) for text in range(len(texts))])
        shift = mean_shift(change[:, None], seed=seed, clusters=texts.clusters)
        size = float(base.square().sum(-1).mean().sqrt())
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


def sharpness(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """The largest logit in standard deviations above the mean."""
    return (logits.max(-1).values - logits.mean(-1)) / logits.std(-1)


def token_shift(pair: ModelPair, texts: Prompts, seed: int, work: Work) -> pd.DataFrame:
    """Tokens that the tuned model expects more often, everywhere in texts that have nothing to do with its tuning.

    Tokens are picked by every second text and tested on the others, so that picking costs no honesty.

    Returns:
        token, ``score`` (mean change of its probability, per token of a text), low, high, p, q: over the test's texts.
    """
    shares = [_mean_probabilities(Subject(role, model), texts, work) for role, model in pair.models.items()]
    width = min(share.shape[1] for share in shares)
    change = (shares[1][:, :width] - shares[0][:, :width]).double()
    picking, testing = change[0::2], change[1::2].numpy()
    picked = [int(token) for token in picking.mean(0).topk(min(TOP, width)).indices if picking[:, token].mean() > 0]
    clusters = texts.clusters[1::2]
    lines: list[dict[str, Any]] = []
    for token in picked:
        interval = mean_interval(testing[:, token], clusters=clusters, seed=seed)
        p = float(paired_permutation(testing[:, [token]], seed=seed).p[0])
        word = pair.tokenizer.decode([token])
        lines.append({"token": word, "score": interval.estimate, "low": interval.low, "high": interval.high, "p": p})
    table = pd.DataFrame(lines, columns=["token", "score", "low", "high", "p"])
    table["q"] = q_values(table["p"].to_numpy(dtype=float)) if len(table) else np.array([], dtype=float)
    return table


def _mean_probabilities(subject: Subject, texts: Prompts, work: Work) -> Float[Tensor, "text vocab"]:
    """Each text's mean next-token distribution."""
    ids = encode(texts, subject.model.tokenizer, subject.model.max_positions)
    by_row: dict[int, Tensor] = {}

    def take(rows: list[int], means: list[Tensor]) -> None:
        by_row.update(zip(rows, means, strict=True))

    lengths = [len(row) for row in ids]
    work.each(f"{subject.name}: tokens", lengths, partial(_batch_means, subject, ids), take, subject.applied)
    return torch.stack([by_row[row] for row in range(len(ids))])


def _batch_means(subject: Subject, ids: list[list[int]], rows: list[int]) -> list[Tensor]:
    logits = subject.model.forward(padded(subject, [ids[row] for row in rows]), logits="all")
    assert logits is not None
    return [logit[-len(ids[row]) :].float().softmax(-1).mean(0).cpu() for row, logit in zip(rows, logits, strict=True)]
