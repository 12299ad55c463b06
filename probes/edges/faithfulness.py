"""Faithfulness of the k best edges, as the MIB benchmark's circuit track defines it (Mueller et al. 2025).

f(k) = (m(C_k) - m(empty)) / (m(all) - m(empty)), where edges outside the circuit carry what the corrupted run wrote.
CPR is the area under f over the share of edges, CMD the area of |1 - f|; both by the trapezoidal rule.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

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
    chosen = np.zeros(scores.size, dtype=bool)
    chosen[order] = True
    return chosen.reshape(scores.shape)


def faithfulness(metric: float, empty: float, whole: float) -> float:
    """f, of a circuit's metric."""
    return (metric - empty) / (whole - empty)


def areas(curve: pd.DataFrame) -> tuple[float, float]:
    """(CPR, CMD) of a curve with columns share and faithfulness; the empty circuit, where f is 0, is put in front."""
    shares = np.array([0.0, *curve["share"]])
    values = np.array([0.0, *curve["faithfulness"]])
    return float(np.trapezoid(values, shares)), float(np.trapezoid(np.abs(1 - values), shares))
