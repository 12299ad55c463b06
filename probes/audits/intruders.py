"""New directions among the weights: leading directions of the tuned matrices that are like none of the base's.

Shuttleworth et al. 2024 call them intruder dimensions. Random changes of the same spectrum bring them too, so what is
told is where the tuning has fewer or more.
"""

from __future__ import annotations

import heapq

import pandas as pd
import torch

from probes.anatomy.spaces import Spaces, Svd, nulls
from probes.audits.hypotheses import LEVEL
from probes.weights.changed_matrices import ChangedMatrix, changed_matrices
from probes.weights.sources import Opened, open_weights
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair
from workbench.progress import Progress

MATRICES, DIRECTIONS, DRAWS = 8, 16, 40
"""Matrices that are read (those that changed most, relative to themselves), leading directions of each, random changes:
the fewest for a two-sided p below .05."""
COLUMNS = ["layer", "module", "directions", "score", "control", "p"]


@torch.no_grad()
def intruders(pair: ModelPair, seed: int, progress: Progress | None) -> pd.DataFrame:
    """Intruders of the matrices that changed most.

    Args:
        pair: Both models.
        seed: Of the random changes.
        progress: A bar.

    Returns:
        layer, module, directions (how many are read), ``score`` (how many of them are intruders), ``control`` (mean
        over random changes of the same spectrum) and p: two-sided, of the sum over all matrices, the same in every row.
        Empty where the weights cannot be compared.
    """
    try:
        opened = open_weights(pair)
        most = _most_changed(opened, progress)
    except (NotSupported, UserError):
        return pd.DataFrame(columns=COLUMNS)
    lines, totals = [], torch.zeros(DRAWS + 1)
    for matrix in most:
        factors = opened.factors.get(matrix.name)
        own = Svd.of(matrix.change) if factors is None else Svd.of_factors(factors.up.cpu(), factors.down.cpu())
        top, spaces = min(own.rank, DIRECTIONS), Spaces.of(matrix.weight)
        counts = [spaces.intruders(matrix.weight + matrix.change, top)]
        counts += [spaces.intruders(matrix.weight + drawn.product(), top)
                   for drawn in nulls(own, DRAWS, seed + matrix.number)]  # fmt: skip
        totals += torch.tensor(counts)
        lines.append([matrix.place.layer, matrix.place.module, top, counts[0], sum(counts[1:]) / DRAWS])
    sides = [float((totals <= totals[0]).float().mean()), float((totals >= totals[0]).float().mean())]
    return pd.DataFrame(lines, columns=COLUMNS[:-1]).assign(p=min(1.0, 2 * min(sides)))


def intruder_sentence(table: pd.DataFrame) -> str:
    """How many directions are new, where random changes bring another number; empty where they do not."""
    if table.empty or table["p"].iloc[0] >= LEVEL:
        return ""
    own, null, of = (table[name].sum() for name in ("score", "control", "directions"))
    turned = "it turns directions that the base has" if own < null else "it brings directions that the base lacks"
    return (
        f"; of {of:.0f} leading directions of the {len(table)} matrices that changed most {own:.0f} are new (random "
        f"changes of the same spectrum: {null:.0f}): {turned}"
    )


def _most_changed(opened: Opened, progress: Progress | None) -> list[ChangedMatrix]:
    held: list[tuple[float, int, ChangedMatrix]] = []
    for matrix in changed_matrices(opened, "new directions", progress):
        relative = float(matrix.change.norm() / matrix.weight.norm().clamp_min(1e-30))
        heapq.heappush(held, (relative, -matrix.number, matrix))
        if len(held) > MATRICES:
            heapq.heappop(held)
    return [matrix for _, _, matrix in sorted(held, key=lambda entry: (-entry[0], -entry[1]))]
