"""Latent scaling in closed form (Minder et al. 2025): how much of a latent's direction each model has where it fires.

For latent j with activations f and direction u, the scale of model m is the least-squares factor of f u in what m has
beyond all other latents: beta_m = sum f <u, error_m + f d_m> / sum f^2. A latent whose decoder row is small for a model
only because other latents do its work there ("latent decoupling"), or because sparsity shrank it ("complete
shrinkage"), shows a scale that is not small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from probes.concepts.dictionary import Dictionary
from probes.dictionaries.streaming import SiteRows
from probes.resampling import bootstrap_weights, interval
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Int, Tensor

UNITS = 200
"""Prompts (or groups) are drawn one by one up to so many; beyond, neighbouring ones are drawn together."""
ONLY = 0.9
"""Share from which (with its whole interval) a latent counts as one model's alone."""

ROUNDING = 1e-4
"""A relative difference of both models' sums that float32 arithmetic alone can make."""


@dataclass(frozen=True)
class Directions:
    """Of every latent: its decoder row for each model, the stronger one's direction, and what it changes."""

    base: Float[Tensor, "latent d"] | None
    tuned: Float[Tensor, "latent d"] | None
    change: Float[Tensor, "latent d"]

    @classmethod
    def of(cls, decoder: Float[Tensor, "latent d_out"], crosscoder: bool) -> Directions:
        if not crosscoder:
            return cls(None, None, decoder)
        base, tuned = decoder.chunk(2, dim=1)
        return cls(base, tuned, tuned - base)

    @property
    def stronger(self) -> Float[Tensor, "latent d"]:
        """The unit direction of the model whose decoder row is longer."""
        assert self.base is not None and self.tuned is not None
        mine = (self.tuned.norm(dim=1) >= self.base.norm(dim=1))[:, None]
        return normalize(torch.where(mine, self.tuned, self.base), dim=1)


@dataclass
class Sums:
    """Sums over the held-out rows of each unit, [unit, latent] (``change2``: [unit])."""

    names: tuple[str, ...]
    sums: dict[str, Float[np.ndarray, "unit latent"]]
    change2: Float[np.ndarray, " unit"]
    explained: float
    """Share of the held-out variance that the dictionary reconstructs."""
    active: float
    """Mean number of active latents per row."""


@torch.no_grad()
def scale(rows: SiteRows, dictionary: Dictionary, directions: Directions, seed: int) -> Sums:
    """One pass over the held-out rows."""
    latents = len(directions.change)
    unit = _units(rows.cluster[rows.test])
    n_units = int(unit.max()) + 1
    change = normalize(directions.change, dim=1)
    random = normalize(torch.randn(change.shape, generator=torch.Generator().manual_seed(seed + 1_000_003)), dim=1)
    names = ["fires", "f2", "along", "random", *(["base", "tuned"] if directions.base is not None else [])]
    sums = {name: torch.zeros(n_units, latents, dtype=torch.float64) for name in names}
    change2 = torch.zeros(n_units, dtype=torch.float64)
    missing2 = total2 = active = 0.0
    centre = rows.pair(rows.sample)[1].mean(0)
    for start, part in zip(range(0, len(rows.test), 1024), rows.chunks(rows.test), strict=True):
        of = torch.from_numpy(unit[start : start + len(part)])
        inputs, wanted = rows.pair(part)
        f = dictionary.encode(inputs)
        error = wanted - f @ dictionary.decoder - dictionary.weights["b_dec"]
        missing2 += float(error.square().sum())
        total2 += float((wanted - centre).square().sum())
        active += float((f > 0).sum())
        base, tuned = rows.sides(part)
        change2.index_add_(0, of, (tuned - base).double().square().sum(1))
        for name, values in _terms(f, error, directions, change, random).items():
            sums[name].index_add_(0, of, values.double())
    return Sums(
        tuple(names), {name: total.numpy() for name, total in sums.items()}, change2.numpy(),
        1 - missing2 / max(total2, 1e-30), active / max(len(rows.test), 1),
    )  # fmt: skip


def _terms(
    f: Float[Tensor, "row latent"], error: Float[Tensor, "row d_out"], directions: Directions,
    change: Float[Tensor, "latent d"], random: Float[Tensor, "latent d"],
) -> dict[str, Float[Tensor, "row latent"]]:  # fmt: skip
    f2, moved = f.square(), error
    terms = {"fires": (f > 0).float(), "f2": f2}
    if directions.base is not None and directions.tuned is not None:
        of_base, of_tuned = error.chunk(2, dim=1)
        moved, stronger = of_tuned - of_base, directions.stronger
        for name, missing, row in (("base", of_base, directions.base), ("tuned", of_tuned, directions.tuned)):
            terms[name] = f * (missing @ stronger.T) + f2 * (stronger * row).sum(1)
    terms["along"] = f * (moved @ change.T) + f2 * (change * directions.change).sum(1)
    terms["random"] = f * (moved @ random.T) + f2 * (random * directions.change).sum(1)
    return terms


def _units(cluster: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    number = np.unique(cluster, return_inverse=True)[1]
    count = int(number.max()) + 1
    return number if count <= UNITS else number * UNITS // count


def latent_table(sums: Sums, directions: Directions, draws: int, seed: int) -> pd.DataFrame:
    """One row per latent that fires on held-out rows.

    Columns: latent; ``score`` with low, high, control and q; ``explained``: share of tuning's squared change that the
    latent carries; ``density``: share of units where it fires; for a crosscoder ``kind`` (tuned, base, shared, mixed),
    ``norm_share`` and ``cosine`` of the two decoder rows.
    """
    alive = np.flatnonzero(sums.sums["f2"].sum(0) > 0)
    alive_sums = {name: total[:, alive] for name, total in sums.sums.items()}
    weights = bootstrap_weights(len(sums.change2), draws, seed)
    explained = _share_of_change(alive_sums["along"], alive_sums, sums.change2, np.ones((1, len(sums.change2))))[0]
    table = {"latent": alive, "explained": explained, "density": (alive_sums["fires"] > 0).mean(0)}
    if directions.base is None:
        scores = _explained_scores(alive_sums, sums.change2, weights, explained, seed)
    else:
        scores = _share_scores(alive_sums, weights, seed)
        table |= _of_decoder(directions, alive)
    made = pd.DataFrame({**table, **scores})
    if directions.base is not None:
        made["kind"] = np.select(
            [made["low"] >= ONLY, made["high"] <= 1 - ONLY, (made["low"] > 0.25) & (made["high"] < 0.75)],
            ["tuned", "base", "shared"], "mixed",
        )  # fmt: skip
    return made


def _share_of_change(
    along: Float[np.ndarray, "unit latent"], sums: dict[str, np.ndarray], change2: Float[np.ndarray, " unit"],
    weights: Float[np.ndarray, "draw unit"],
) -> Float[np.ndarray, "draw latent"]:  # fmt: skip
    carried = (weights @ along) ** 2 / np.maximum(weights @ sums["f2"], 1e-30)
    return np.asarray(carried / np.maximum(weights @ change2, 1e-30)[:, None])


def _explained_scores(
    sums: dict[str, np.ndarray], change2: np.ndarray, weights: np.ndarray, explained: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    low, high = interval(_share_of_change(sums["along"], sums, change2, weights))
    whole = np.ones((1, len(change2)))
    tested = paired_permutation(sums["along"] - sums["random"], seed=seed, alternative="greater")
    return {
        "score": explained,
        "low": low,
        "high": high,
        "control": _share_of_change(sums["random"], sums, change2, whole)[0],
        "q": q_values(tested.p),
    }


def _share_scores(sums: dict[str, np.ndarray], weights: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The tuned model's part of both scales: 1 where only it has the latent's direction, 0 where only the base has."""
    low, high = interval(_share(weights @ sums["base"], weights @ sums["tuned"]))
    swapped = np.random.default_rng(seed).integers(0, 2, (50, len(weights[0])))
    of_base = swapped @ sums["base"] + (1 - swapped) @ sums["tuned"]
    of_tuned = swapped @ sums["tuned"] + (1 - swapped) @ sums["base"]
    apart = sums["tuned"] - sums["base"]
    apart[np.abs(apart) < ROUNDING * (np.abs(sums["tuned"]) + np.abs(sums["base"]))] = 0
    tested = paired_permutation(apart, seed=seed)
    return {
        "score": _share(sums["base"].sum(0), sums["tuned"].sum(0)),
        "low": low,
        "high": high,
        "control": _share(of_base, of_tuned).mean(0),
        "q": q_values(tested.p),
    }


def _share(base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    of_base, of_tuned = np.maximum(base, 0), np.maximum(tuned, 0)
    both = of_base + of_tuned
    return np.divide(of_tuned, both, out=np.full_like(both, 0.5), where=both > 0)


def _of_decoder(directions: Directions, alive: Int[np.ndarray, " latent"]) -> dict[str, np.ndarray]:
    assert directions.base is not None and directions.tuned is not None
    base, tuned = directions.base[alive], directions.tuned[alive]
    lengths = base.norm(dim=1), tuned.norm(dim=1)
    return {
        "norm_share": (lengths[1] / (lengths[0] + lengths[1]).clamp_min(1e-12)).numpy(),
        "cosine": torch.nn.functional.cosine_similarity(base, tuned, dim=1).numpy(),
    }
