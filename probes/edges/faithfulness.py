"""Faithfulness of the k best edges, as the MIB benchmark's circuit track defines it (Mueller et al. 2025).

f(k) = (m(C_k) - m(empty)) / (m(all) - m(empty)), where edges outside the circuit carry what the corrupted run wrote.
CPR is the area under f over the share of edges, CMD the area of |1 - f|; both by the trapezoidal rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.typing import Bool, Float

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which circuits are tried."""


def leading(
    scores: Float[np.ndarray, "sender receiver"], possible: Bool[np.ndarray, "sender receiver"], share: float
) -> Bool[np.ndarray, "sender receiver"]:
    """The edges of highest score, ``share`` of all that are possible (at least one)."""
    ranked = np.where(possible, scores, -np.inf)
    count = max(1, round(share * int(possible.sum()))) if share else 0
    order = np.argsort(-ranked, axis=None, kind="stable")[:count]
    inside = np.zeros(scores.size, dtype=bool)
    inside[order] = True
    return inside.reshape(scores.shape)


def faithfulness(
    metric: Float[np.ndarray, "draw share"], empty: Float[np.ndarray, "draw 1"], whole: Float[np.ndarray, "draw 1"]
) -> Float[np.ndarray, "draw share"]:
    """f, of circuits' metrics."""
    return (metric - empty) / (whole - empty)


def area(
    f: Float[np.ndarray, "draw share"], shares: Sequence[float] = SHARES, *, distance: bool = False
) -> Float[np.ndarray, " draw"]:
    """CPR of curves, or with ``distance`` CMD; the empty circuit, where f is 0, is put in front."""
    whole = np.concatenate([np.zeros((len(f), 1)), f], axis=1)
    areas: np.ndarray = np.trapezoid(np.abs(1 - whole) if distance else whole, np.array([0.0, *shares]), axis=1)
    return areas
