"""The anatomy of every matrix's update: where in the base's spectrum it lies, its rank, its intruders, its split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import plotly.graph_objects as go
import torch

from probes.anatomy.spaces import Spaces, Svd, low_rank_sparse, nulls
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.weights.changed_matrices import ChangedMatrix, changed_matrices
from probes.weights.sources import open_weights
from workbench.errors import UserError
from workbench.figures.weights import cell_map
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.progress import Progress


@dataclass(frozen=True, kw_only=True)
class UpdateAnatomy(ProbeResult):
    """One row per changed matrix inside the layers.

    ``score``: share of the update inside the base's ``k`` leading output directions; ``low``, ``high`` equal it (the
    weights are known exactly); ``control`` the mean of random updates with the same spectrum, ``control_high`` their
    largest, ``q`` of a larger share (the smallest p is 1 / (draws + 1)). ``right`` and ``right_control``: the same
    for the input directions. ``rank``, ``rank50``, ``rank90``: ranks, and the fewest that hold so much of the squared
    norm. ``intruders``: of as many leading directions of the tuned weight as the update has ranks (at most 16), those
    like none of the base's; beside ``intruders_control``. ``left_low_rank``: squared norm beyond the best ``rank``
    ranks; ``left_split``: beyond those and the largest ``share`` of entries; ``left_control``: the same split of a
    Gaussian matrix of that shape.
    """

    k: int

    title: ClassVar[str] = "Anatomy of the update"
    unit: ClassVar[str] = "share of the update in the base's leading output directions"

    def figure(self) -> go.Figure:
        """The share beyond the control, layer by module."""
        beyond = self.table.assign(score=self.table["score"] - self.table["control"])
        return cell_map(beyond, "module", title=self.title, unit="share beyond random factors")

    def summary(self) -> str:
        table = self.table
        beyond = int((table["q"] < 0.05).sum())
        return (
            f"{len(table)} matrices; {table['score'].mean():.3f} of the update lies in the base's top {self.k} output "
            f"directions, random factors {table['control'].mean():.3f}; {beyond} matrices beyond them at q < 0.05; "
            f"{int(table['intruders'].sum())} intruder directions, {table['intruders_control'].sum():.1f} by chance. "
            f"Control: {self.control}."
        )


@method(
    "anatomy",
    group="weights",
    question="Does the update use the base's own directions, and is it low-rank, sparse, or made of new directions?",
    papers=(
        "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning",
        "DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models",
    ),
    needs=Needs(folders=True),
    cost="a singular value decomposition of every changed matrix, and one more for each random draw",
)
def update_anatomy(
    base: Any,
    tuned: Any = None,
    *,
    k: int = 64,
    rank: int = 8,
    share: Annotated[float, Within(1e-6, 1)] = 0.01,
    draws: int = 19,
    seed: int = 0,
    progress: Progress | None = None,
) -> UpdateAnatomy:
    """Take apart the update of every changed matrix inside the layers, each number beside random factors.

    Args:
        base: A pair, or the base.
        tuned: The tuned model or adapter, where ``base`` is no pair.
        k: Leading directions of the base's weight.
        rank: Rank of the low part of the split.
        share: Share of the entries in the sparse part of the split.
        draws: Random updates with the same spectrum; 19 is the fewest for p = 0.05.
        seed: Of the random updates.

    Raises:
        UserError: Nothing differs inside the layers.
    """
    opened = open_weights(base, tuned)
    rows = []
    for matrix in changed_matrices(opened, "anatomy", progress):
        factors = opened.factors.get(matrix.name)
        svd = Svd.of(matrix.change) if factors is None else Svd.of_factors(factors.up.cpu(), factors.down.cpu())
        own_seed = seed + matrix.number
        rows.append({**_row(matrix, svd, k, draws, own_seed), **_split(svd, rank, share, own_seed)})
    if not rows:
        raise UserError("The two models do not differ in any matrix inside the layers: there is nothing to take apart.")
    return UpdateAnatomy(
        table=with_q(rows, keep_p=False),
        control=f"random directions with the update's own singular values ({draws} draws)",
        provenance=Provenance.of("update_anatomy", opened.identities(), seed=seed),
        k=k,
    )  # fmt: skip


@torch.no_grad()
def _row(matrix: ChangedMatrix, svd: Svd, k: int, draws: int, seed: int) -> dict[str, Any]:
    weight = matrix.weight
    spaces = Spaces.of(weight)
    top = min(svd.rank, 16)
    drawn = list(nulls(svd, draws, seed))
    left = spaces.share_left(svd, k)
    shares = [spaces.share_left(draw, k) for draw in drawn]
    chance = [spaces.intruders(weight + draw.product(), top) for draw in drawn[:3]]
    return {
        "layer": matrix.place.layer, "module": matrix.place.module, "name": matrix.name,
        "score": left, "low": left, "high": left,
        "control": float(np.mean(shares)) if shares else np.nan, "control_high": max(shares, default=np.nan),
        "p": (1 + sum(share >= left for share in shares)) / (draws + 1),
        "right": spaces.share_right(svd, k),
        "right_control": float(np.mean([spaces.share_right(draw, k) for draw in drawn])) if drawn else np.nan,
        "rank": svd.rank, "rank50": svd.energy_rank(0.5), "rank90": svd.energy_rank(0.9),
        "intruders": spaces.intruders(weight + svd.product(), top),
        "intruders_control": float(np.mean(chance)) if chance else np.nan, "directions": top,
    }  # fmt: skip


def _split(svd: Svd, rank: int, share: float, seed: int) -> dict[str, float]:
    squares = svd.values.square()
    update = svd.product()
    noise = torch.randn(update.shape, generator=torch.Generator().manual_seed(seed))
    return {
        "left_low_rank": float(squares[rank:].sum() / squares.sum()),
        "left_split": low_rank_sparse(update, rank, share, rounds=3).left_over(update),
        "left_control": low_rank_sparse(noise, rank, share, rounds=3).left_over(noise),
    }
