"""How a layer tells one kind of prompt from others: direction, threshold, and the test on what was held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from probes.resampling import cluster_means
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.stats.bootstrap import statistic_interval
from workbench.stats.intervals import Interval
from workbench.stats.tests import mann_whitney
from workbench.typing import Bool, Float, Int, Tensor


@dataclass(frozen=True)
class Rows:
    """What a layer holds of some prompts: all tokens that a gate would read, and which prompt each is of."""

    values: Float[Tensor, "token d_model"]
    prompt: np.ndarray
    last: np.ndarray
    """[prompt] the row of ``values`` of its last token."""


@dataclass(frozen=True)
class Reading:
    """Prompts at one layer: ``wanted`` [prompt], ``first`` [prompt], whether they are of the fitting half, and groups
    [prompt]."""

    rows: Rows
    wanted: Bool[np.ndarray, " prompt"]
    first: Bool[np.ndarray, " prompt"]
    clusters: Int[np.ndarray, " prompt"]


@dataclass(frozen=True)
class LayerFit:
    """Direction and threshold of one layer, and how they do on both halves."""

    direction: Float[Tensor, " d_model"]
    threshold: float
    fitted: float
    """Area under the ROC curve on the fitting half."""
    margin: float
    """Distance of the class means over the spread inside the classes, on the fitting half."""
    score: Interval
    control: float
    p: float
    fires: dict[str, tuple[Bool[np.ndarray, " prompt"], Int[np.ndarray, " prompt"]]]
    """Set -> of every held-out prompt, whether the gate opens, and its group."""


def read_rows(
    model: AdaptedModel, prompts: Prompts, layers: object, reach: str, progress: Progress | None
) -> dict[int, Rows]:
    """Layer -> its residual stream after it, on the last token, or on all for gates that read them all."""
    recording = record(
        model, prompts, "resid_post", layers=layers, positions="last" if reach == "prompt" else "all",
        progress=progress,
    )  # fmt: skip
    values = recording[next(iter(recording.roles))]
    prompt = recording.index["prompt"].to_numpy()
    last = np.array([np.flatnonzero(prompt == number)[-1] for number in range(len(prompts))])
    return {
        layer: Rows(values["resid_post", layer][:].float(), prompt, last)
        for layer in sorted({int(name.split(".")[1]) for name in recording.sites})
    }


def halves(clusters: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """[prompt] whether it is of the fitting half: half the groups of each label.

    Raises :class:`UserError` where a label has one group alone.
    """
    generator = np.random.default_rng(seed)
    first = np.zeros(len(wanted), dtype=bool)
    mixed = np.intersect1d(clusters[wanted], clusters[~wanted])
    for kind in (True, False):
        groups = generator.permutation(np.unique(clusters[wanted == kind]))
        if len(groups) < 2:
            raise UserError("All prompts of a label are of one group, which cannot be parted: give more groups.")
        first |= np.isin(clusters, groups[: len(groups) // 2]) & (wanted == kind)
    shared = np.isin(clusters, mixed)  # groups of both labels stay whole
    first[shared] = np.isin(clusters, generator.permutation(mixed)[: len(mixed) // 2])[shared]
    return first


def separated(labelled: Reading, plain: Reading, most_false: float, controls: int, draws: int, seed: int) -> LayerFit:
    """Fit on the first half of both, and test on the rest."""
    direction = _direction(labelled, plain, labelled.wanted)
    own, other = _along(labelled.rows, direction), _along(plain.rows, direction)
    hits = own[labelled.first & labelled.wanted]
    rest = np.concatenate([own[labelled.first & ~labelled.wanted], other[plain.first]])
    threshold = _threshold(hits, rest, most_false)
    held = ~labelled.first
    groups = labelled.clusters, plain.clusters + labelled.clusters.max() + 1
    mine, others = held & labelled.wanted, held & ~labelled.wanted
    score, p = _area(
        own[mine], np.concatenate([own[others], other[~plain.first]]), groups[0][mine],
        np.concatenate([groups[0][others], groups[1][~plain.first]]), draws, seed,
    )  # fmt: skip
    return LayerFit(
        direction=direction, threshold=threshold,
        fitted=float(mann_whitney(hits, rest).effect), margin=_margin(hits, rest),
        score=score, control=_shuffled(labelled, plain, controls, seed), p=p,
        fires={
            "wanted": (own[mine] >= threshold, groups[0][mine]), "other": (own[others] >= threshold, groups[0][others]),
            "neutral": (other[~plain.first] >= threshold, groups[1][~plain.first]),
        },
    )  # fmt: skip


def _direction(labelled: Reading, plain: Reading, wanted: np.ndarray) -> Tensor:
    """Fisher's discriminant (shrunk after Ledoit and Wolf) of the wanted prompts' last tokens against all others,
    neutral ones among them; of norm 1."""
    ends = labelled.rows.values[labelled.rows.last]
    mine = ends[labelled.first & wanted]
    others = torch.cat([ends[labelled.first & ~wanted], plain.rows.values[plain.rows.last][plain.first]])
    classes = np.repeat([1, 0], [len(mine), len(others)])
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    fitted.fit(torch.cat([mine, others]).double().numpy(), classes)
    return torch.nn.functional.normalize(torch.from_numpy(fitted.coef_[0]), dim=0).float()


def _along(rows: Rows, direction: Tensor) -> np.ndarray:
    """[prompt] the largest projection over the tokens that are read."""
    projections = (rows.values @ direction).double().numpy()
    largest = np.full(len(rows.last), -np.inf)
    np.maximum.at(largest, rows.prompt, projections)
    return largest


def _threshold(hits: np.ndarray, rest: np.ndarray, most_false: float) -> float:
    """In the middle of the gap above the value that at most ``most_false`` of the rest exceed."""
    allowed = int(np.floor(most_false * len(rest)))
    highest = np.sort(rest)[::-1][allowed] if allowed < len(rest) else rest.min()
    above = hits[hits > highest]
    return float((highest + above.min()) / 2) if len(above) else float(np.nextafter(highest, np.inf))


def _area(
    hits: np.ndarray, rest: np.ndarray, of_hits: np.ndarray, of_rest: np.ndarray, draws: int, seed: int
) -> tuple[Interval, float]:
    """Area under the ROC curve with its interval over groups, and the p-value of Mann and Whitney of their means."""
    wins = (hits[:, None] > rest[None]) + 0.5 * (hits[:, None] == rest[None])

    def area(weights: np.ndarray) -> np.ndarray:
        mine, theirs = weights[:, : len(hits)], weights[:, len(hits) :]
        pairs = mine.sum(1) * theirs.sum(1)
        total: np.ndarray = ((mine @ wins) * theirs).sum(1) / np.maximum(pairs, 1)
        return np.where(pairs > 0, total, 0.5)  # a draw that lacks one of the two tells nothing

    means = (cluster_means(side[:, None], of_side)[:, 0] for side, of_side in ((hits, of_hits), (rest, of_rest)))
    tested = mann_whitney(*means, alternative="greater")
    # a jackknife of a separable pair has no spread: percentiles are what is left there
    clusters = np.concatenate([of_hits, of_rest])
    interval = statistic_interval(
        area, len(hits) + len(rest), clusters=clusters, draws=draws, seed=seed, method="percentile"
    )
    return interval, float(tested.p)


def _margin(hits: np.ndarray, rest: np.ndarray) -> float:
    spread = np.sqrt((hits.var() + rest.var()) / 2)
    return float((hits.mean() - rest.mean()) / max(spread, 1e-12))


def _shuffled(labelled: Reading, plain: Reading, controls: int, seed: int) -> float:
    """Mean held-out area of fits whose labels were dealt out anew inside both halves."""
    areas = []
    for draw in range(controls):
        generator = np.random.default_rng((seed, draw))
        wanted = labelled.wanted.copy()
        for half in (labelled.first, ~labelled.first):
            wanted[half] = generator.permutation(wanted[half])
        own = _along(labelled.rows, _direction(labelled, plain, wanted))
        held = ~labelled.first
        areas.append(float(mann_whitney(own[held & wanted], own[held & ~wanted]).effect))
    return float(np.mean(areas)) if areas else float("nan")
