"""Statistics of activations that are never kept: moments in float64 and the rows of largest value.

Chunks are merged by the pairwise update of Chan, Golub & LeVeque (1979, "Updating formulae and a pairwise
algorithm for computing sample variances"), which does not drift however many rows there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from workbench.cards import card
from workbench.typing import Float, Num, Tensor

_CHUNK = 2**20
"""How many numbers are widened to float64 at once (8 MiB)."""


class StreamingMoments:
    """Count, mean, variance and, when asked for, covariance of rows of one shape.

    The covariance is taken over the last axis, apart for every index of the others: rows ``[head, d_head]``
    give ``[head, d_head, d_head]``. A NaN in a row is a NaN in the result; leave such rows out.
    """

    def __init__(self, shape: Sequence[int], *, covariance: bool = False) -> None:
        if covariance and not shape:
            raise ValueError("a covariance needs rows with at least one axis")
        self.shape = tuple(int(size) for size in shape)
        self.count: int = 0
        self._has_covariance = covariance
        self._mean = torch.zeros(self.shape, dtype=torch.float64)
        spread = (*self.shape, self.shape[-1]) if covariance else self.shape
        self._spread = torch.zeros(spread, dtype=torch.float64)
        """Sum of squared deviations from the mean, or of their outer products."""

    def update(self, rows: Num[Tensor, "rows ..."]) -> None:
        """Take in ``rows``, of any dtype and on any device; the sums stay on the device of the first rows."""
        if rows.shape[1:] != self.shape:
            raise ValueError(f"rows have shape {tuple(rows.shape[1:])}; expected {self.shape}")
        rows = rows.detach()
        if rows.device.type == "mps":  # has no float64
            rows = rows.cpu()
        if not self.count:
            self._mean, self._spread = self._mean.to(rows.device), self._spread.to(rows.device)
        for chunk in rows.split(max(1, _CHUNK // max(1, rows[:1].numel()))) if len(rows) else ():
            wide = chunk.to(self._mean.device, torch.float64, copy=True)
            mean = wide.mean(dim=0)
            self._add(len(wide), mean, self._spread_of(wide.sub_(mean)))

    def merge(self, other: StreamingMoments) -> None:
        """Take in what ``other`` has seen, as if its rows had come here."""
        if (other.shape, other._has_covariance) != (self.shape, self._has_covariance):
            raise ValueError(f"moments of {other.shape} cannot be merged into moments of {self.shape}")
        if other.count:
            self._add(other.count, other._mean.to(self._mean.device), other._spread.to(self._mean.device))

    @property
    def mean(self) -> Tensor:
        """float64 of the rows' shape; NaN before the first row."""
        return self._mean.cpu() if self.count else torch.full(self.shape, torch.nan, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        """float64 of the rows' shape, unbiased (divided by n - 1); NaN with fewer than two rows."""
        spread = self._spread.diagonal(dim1=-2, dim2=-1) if self._has_covariance else self._spread
        return self._over_n_minus_1(spread)

    @property
    def std(self) -> Tensor:
        """The square root of the variance."""
        return self.variance.sqrt()

    @property
    def covariance(self) -> Float[Tensor, "... last"]:
        """float64, unbiased, over the last axis."""
        if not self._has_covariance:
            raise ValueError("the covariance was not asked for; make the moments with covariance=True")
        return self._over_n_minus_1(self._spread)

    def as_tensors(self) -> dict[str, Tensor]:
        """Everything, to be stored in a safetensors file."""
        return {"count": torch.tensor(self.count), "mean": self._mean.cpu(), "spread": self._spread.cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> StreamingMoments:
        """What :meth:`as_tensors` gave."""
        mean, spread = tensors["mean"], tensors["spread"]
        made = cls(tuple(mean.shape), covariance=spread.ndim > mean.ndim)
        made.count, made._mean, made._spread = int(tensors["count"]), mean.clone(), spread.clone()
        return made

    def __repr__(self) -> str:
        return f"StreamingMoments(shape={self.shape}, count={self.count})"

    def _repr_html_(self) -> str:
        moments = "mean, variance, covariance" if self._has_covariance else "mean, variance"
        return card("Statistics of activations", {"rows": self.count, "shape": self.shape, "kept": moments})

    def _spread_of(self, centred: Tensor) -> Tensor:
        if not self._has_covariance:
            return centred.square_().sum(dim=0)
        by_row = centred.movedim(0, -1)
        return by_row @ by_row.mT

    def _add(self, count: int, mean: Tensor, spread: Tensor) -> None:
        total = self.count + count
        delta = mean - self._mean
        between = delta.unsqueeze(-1) * delta.unsqueeze(-2) if self._has_covariance else delta.square()
        self._spread = self._spread + spread + between * (self.count * (count / total))
        self._mean = self._mean + delta * (count / total)
        self.count = total

    def _over_n_minus_1(self, spread: Tensor) -> Tensor:
        if self.count < 2:
            return torch.full(spread.shape, torch.nan, dtype=torch.float64)
        return spread.cpu() / (self.count - 1)


class TopActivating:
    """The ``k`` rows of largest value seen so far, with where they are.

    Equal values are ordered by prompt, then position, so the result does not depend on how the rows were cut
    into batches or shared out among machines.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; expected 1 or more")
        self.k = k
        self._values = np.empty(0)
        self._where = np.empty((0, 3), dtype=np.int64)

    def update(
        self,
        values: Num[Tensor, " rows"],
        prompts: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
    ) -> None:
        """Take in one value per row, with the prompt, position and token id it belongs to. NaN is left
        out."""
        rows = values.detach().double().cpu().numpy()
        where = np.stack([np.asarray(column, dtype=np.int64) for column in (prompts, positions, tokens)], axis=1)
        if len(where) != len(rows):
            raise ValueError(f"{len(rows)} values came with {len(where)} places")
        # Most rows are below the k-th value already; only the others need sorting.
        low = self._values[-1] if len(self._values) == self.k else -np.inf
        keep = rows >= low
        if keep.any():
            self._take(rows[keep], where[keep])

    def merge(self, other: TopActivating) -> None:
        """Take in what ``other`` has kept."""
        self._take(other._values, other._where)

    def frame(self) -> pd.DataFrame:
        """Columns value, prompt, position, token; the largest first."""
        places = {name: self._where[:, i] for i, name in enumerate(("prompt", "position", "token"))}
        return pd.DataFrame({"value": self._values, **places})

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"TopActivating(k={self.k}, {len(self)} rows)"

    def _repr_html_(self) -> str:
        return card(f"The {len(self)} rows of largest value", table=self.frame().head(10))

    def _take(self, values: np.ndarray, where: np.ndarray) -> None:
        values, where = np.concatenate([self._values, values]), np.concatenate([self._where, where])
        first = np.lexsort((where[:, 1], where[:, 0], -values))[: self.k]
        self._values, self._where = values[first], where[first]
