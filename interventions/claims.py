"""What an intervention decides alone; two claims on the same thing contradict (:mod:`interventions.conflicts`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.engine.sites import Site
from workbench.typing import Tensor


@dataclass(frozen=True, eq=False)
class Claim:
    """What an intervention decides alone: the coordinates in a subspace of a site, or some heads."""

    site: Site
    what: str
    basis: Tensor | None = None
    """[rank, d_model] orthonormal; None: the whole site."""
    parts: frozenset[int] = field(default_factory=frozenset)
    """Heads; empty: not divided."""
