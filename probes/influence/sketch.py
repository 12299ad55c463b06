"""Adam's step of each row, and its random projection to a few thousand numbers (LESS, Xia et al. 2024).

The projection adds up entries with random signs into ``dim`` buckets (a sign sketch, Charikar et al. 2002): inner
products are kept in expectation with a relative error of about 1 / sqrt(dim), as with a dense Gaussian matrix, and the
cost is one multiplication per entry instead of ``dim``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import normalize

from probes.influence.row_gradients import Gradients
from workbench.typing import Float, Tensor


@dataclass
class SecondMoments:
    """Mean squared gradients over some training rows: what Adam divides by.

    The moments of the optimiser itself are rarely kept; these are estimated at the weights that are looked at, and
    momentum, which is the same for every row, is left out.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: int = 0

    def add(self, gradients: Gradients) -> None:
        """Take in one batch of rows."""
        self.rows += len(next(iter(gradients.values())))
        for name, values in gradients.items():
            squares = values.square().sum(0)
            self.sums[name] = squares if name not in self.sums else self.sums[name] + squares

    def steps(self, gradients: Gradients, beta: float = 0.999, epsilon: float = 1e-8) -> Gradients:
        """Each row's step: gradient / (sqrt(second moment with the row's own square taken in) + epsilon)."""
        if not self.rows:
            return gradients
        made = {}
        for name, values in gradients.items():
            moment = beta * self.sums[name] / self.rows + (1 - beta) * values.square()
            made[name] = values / (moment.sqrt() + epsilon)
        return made


class Sketch:
    """A fixed random projection of all matrices together to ``dim`` numbers."""

    def __init__(self, dim: int, seed: int) -> None:
        self.dim, self.seed = dim, seed
        self._signs: dict[str, Float[Tensor, " entry"]] = {}
        self._rolls: dict[str, int] = {}

    def __call__(self, gradients: Gradients) -> Float[Tensor, "row dim"]:
        """Unit projections of the rows; a row without gradient is 0."""
        rows = len(next(iter(gradients.values())))
        total = torch.zeros(rows, self.dim)
        for name in sorted(gradients):
            flat = gradients[name].flatten(1).cpu()
            signed = flat * self._sign(name, flat.shape[1])
            short = -flat.shape[1] % self.dim
            padded = torch.nn.functional.pad(signed, (0, short)) if short else signed
            total += padded.view(rows, -1, self.dim).sum(1).roll(self._rolls[name], 1)
        return normalize(total, dim=1)

    def _sign(self, name: str, size: int) -> Float[Tensor, " entry"]:
        if name not in self._signs:
            key = int.from_bytes(name.encode()[-32:], "big") % 2**31
            generator = np.random.default_rng((self.seed, key, len(self._signs)))
            self._rolls[name] = int(generator.integers(self.dim))
            bits = generator.integers(0, 2, size, dtype=np.int8)
            self._signs[name] = torch.from_numpy(bits).float() * 2 - 1
        return self._signs[name]
