"""An update against the base weight's singular space, with random factors of the same spectrum as the null."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from workbench.typing import Bool, Float, Tensor

INTRUDER_BELOW = 0.5
"""A leading direction of the tuned weight is an intruder where no direction of the base has a larger |cosine|
(Shuttleworth et al. 2024 take thresholds around this)."""


@dataclass(frozen=True)
class Spaces:
    """Singular vectors of a base weight: ``left`` [out, n], ``values`` [n], ``right`` [into, n]."""

    left: Float[Tensor, "out n"]
    values: Float[Tensor, " n"]
    right: Float[Tensor, "into n"]

    @classmethod
    def of(cls, weight: Float[Tensor, "out into"]) -> Spaces:
        left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
        return cls(left, values, right.T)

    def share_left(self, update: Svd, k: int) -> float:
        """||U_k' D||^2 / ||D||^2: how much of the update writes into the base's k leading output directions."""
        return update.share(self.left[:, :k].T @ update.left)

    def share_right(self, update: Svd, k: int) -> float:
        """||D V_k||^2 / ||D||^2: how much of it reads from the base's k leading input directions."""
        return update.share(self.right[:, :k].T @ update.right)

    def intruders(self, tuned: Float[Tensor, "out into"], top: int) -> int:
        """How many of the ``top`` leading left directions of the tuned weight are like none of the base's."""
        with torch.random.fork_rng(devices=[]):  # it takes no generator: the same matrix, the same number
            torch.manual_seed(0)
            leading = torch.svd_lowrank(tuned.float(), q=min(top + 8, *tuned.shape), niter=6)[0][:, :top]
        return int(((self.left.T @ leading).abs().amax(0) < INTRUDER_BELOW).sum())


@dataclass(frozen=True)
class Svd:
    """An update as ``left * values @ right.T``, without its zero directions."""

    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "into rank"]

    @classmethod
    def of(cls, update: Float[Tensor, "out into"]) -> Svd:
        left, values, right = torch.linalg.svd(update.float(), full_matrices=False)
        used = values > values.max() * 1e-6 if float(values.max()) > 0 else values > 0
        return cls(left[:, used], values[used], right.T[:, used])

    @classmethod
    def of_factors(cls, up: Float[Tensor, "out rank"], down: Float[Tensor, "rank into"]) -> Svd:
        """Of ``up @ down`` without forming it."""
        q_up, r_up = torch.linalg.qr(up.float())
        q_down, r_down = torch.linalg.qr(down.float().T)
        small = cls.of(r_up @ r_down.T)
        return cls(q_up @ small.left, small.values, q_down @ small.right)

    @property
    def rank(self) -> int:
        return len(self.values)

    def share(self, projected: Float[Tensor, "k rank"]) -> float:
        """The squared norm of the projected directions times their values, as a share of the whole."""
        squares = self.values.square()
        total = float(squares.sum())
        return float((projected.square().sum(0) * squares).sum()) / total if total else 0.0

    def product(self) -> Float[Tensor, "out into"]:
        return (self.left * self.values) @ self.right.T

    def energy_rank(self, share: float) -> int:
        """The fewest ranks that hold ``share`` of the squared norm."""
        if not self.rank:
            return 0
        held = self.values.square().cumsum(0) / self.values.square().sum()
        return int((held < share - 1e-7).sum()) + 1

    def random(self, generator: torch.Generator) -> Svd:
        """The same values on random orthonormal directions: the null of every share."""
        made = [torch.randn(side.shape, generator=generator) for side in (self.left, self.right)]
        left, right = (torch.linalg.qr(side)[0] for side in made)
        return Svd(left, self.values, right)


def nulls(update: Svd, draws: int, seed: int) -> Iterator[Svd]:
    """``draws`` random updates with the update's spectrum."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield update.random(generator)


@dataclass(frozen=True)
class Split:
    """low + sparse + ``left over`` = the update (DSEE, Chen et al. 2021)."""

    low: Float[Tensor, "out into"]
    sparse: Float[Tensor, "out into"]

    @property
    def mask(self) -> Bool[Tensor, "out into"]:
        """Where the sparse part lies."""
        return self.sparse != 0

    def left_over(self, update: Float[Tensor, "out into"]) -> float:
        """Squared norm that neither part holds, as a share of the update's."""
        total = float(update.double().square().sum())
        return float((update - self.low - self.sparse).double().square().sum()) / total if total else 0.0


def low_rank_sparse(update: Float[Tensor, "out into"], rank: int, share: float, *, rounds: int = 10) -> Split:
    """Split an update into ``rank`` and the largest ``share`` of the entries of the rest, by turns (GoDec, Zhou & Tao
    2011).

    Args:
        update: dW.
        rank: Rank of the low part.
        share: Share of the entries that the sparse part may have.
        rounds: Turns from either start (no sparse part; the largest entries); the better end is taken.
    """
    from interventions.weightspace.merging import low_rank, trimmed

    splits = []
    for sparse in (torch.zeros_like(update), trimmed(update, share)):  # turns can end in a worse place from one side
        low = sparse
        for _ in range(rounds):
            low = low_rank(update - sparse, rank)
            sparse = trimmed(update - low, share)
            if float((update - low - sparse).norm()) <= 1e-6 * float(update.norm()):
                break
        splits.append(Split(low, sparse))
    return min(splits, key=lambda split: split.left_over(update))
