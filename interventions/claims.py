"""What an intervention decides alone; two claims on the same thing contradict (:mod:`interventions.conflicts`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.engine.sites import Site
from workbench.typing import Tensor


@dataclass(frozen=True, eq=False)
class Claim:
    """What an intervention decides alone: the coordinates in a subspace of a site, some heads, or an expert's state."""

    site: Site
    what: str
    basis: Tensor | None = None
    """[rank, d_model] orthonormal; None: the whole site."""
    parts: frozenset[int] = field(default_factory=frozenset)
    """Heads or experts; empty: not divided."""
    exclusive: bool = True
    """Whether two such claims contradict even when ``what`` is the same word."""
