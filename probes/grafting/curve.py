"""What grafts of different sizes do, beside their controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.grafting.blend import Blender
from probes.grafting.search import most_moved
from probes.grafting.tasks import Outcome, Task, grafted_outcome
from probes.grafting.units import Mask, Units, complement, entries_in, everything, random_like
from workbench.progress import Progress, tracked
from workbench.stats import share_interval
from workbench.typing import Tensor

DRAWS = 10


@dataclass
class Judge:
    """Evaluates masks on held-out rows, against the tuned model's own answers."""

    blender: Blender
    test: Task
    tuned: Outcome
    ood: Task | None = None
    tuned_ood: Outcome | None = None
    seed: int = 0
    forward_passes: int = 0

    def run(self, mask: Mask) -> Outcome:
        """Answers on the held-out rows."""
        self.forward_passes += len(self.test.batches)
        return grafted_outcome(self.test, self.blender, mask)

    def measures(self, mask: Mask) -> dict[str, Any]:
        """Accuracy with interval, calibration, agreement with the tuned model, accuracy out of distribution."""
        measures = self.described(self.run(mask), self.tuned)
        if self.ood is not None:
            self.forward_passes += len(self.ood.batches)
            measures["ood_accuracy"] = grafted_outcome(self.ood, self.blender, mask).accuracy
        return measures

    def described(self, outcome: Outcome, reference: Outcome) -> dict[str, Any]:
        """An outcome as numbers."""
        held = share_interval(outcome.right, clusters=self.test.clusters, seed=self.seed)
        return {
            "accuracy": held.estimate,
            "low": held.low,
            "high": held.high,
            "ece": outcome.ece,
            "agreement": outcome.agreement(reference),
            "loss": outcome.loss,
            "n": len(outcome.right),
        }

    def random(self, mask: Mask, draws: int) -> dict[str, Any]:
        """Accuracy of random masks with as many units in each tensor: mean and range of the draws."""
        generator = torch.Generator().manual_seed(self.seed)
        region = self.blender.region
        drawn = [self.run(random_like(region, mask, generator)).accuracy for _ in range(draws)]
        return {"random": float(np.mean(drawn)), "random_low": min(drawn), "random_high": max(drawn)}


def sparsity_curve(
    judge: Judge, ranking: Units, sparsities: Sequence[float], draws: int, watch: Progress
) -> pd.DataFrame:
    """One row per size: the best-ranked entries, those that moved most, and random ones, as many each."""
    rows = []
    watch.start("sparsity curve", len(sparsities))
    for sparsity in tracked(sparsities, watch):
        rows.append(_curve_row(judge, ranking, sparsity, draws))
    watch.finish()
    return pd.DataFrame(rows).drop_duplicates("entries", ignore_index=True)


def _curve_row(judge: Judge, ranking: Units, sparsity: float, draws: int) -> dict[str, Any]:
    region = judge.blender.region
    budget = max(1, round(sparsity * region.n_entries))
    by_movement = judge.run(most_moved(region, budget)).accuracy
    mask = ranking.top(budget)
    entries = entries_in(region, mask)
    row = {"sparsity": entries / region.n_entries, "entries": entries, **judge.measures(mask)}
    return {**row, "movement": by_movement, **judge.random(mask, draws)}


def variants(judge: Judge, mask: dict[str, Tensor], draws: int) -> pd.DataFrame:
    """Base, tuned model, the graft, its complement, everything eligible, movement and random masks of its size."""
    region = judge.blender.region
    entries = entries_in(region, mask)
    # made one at a time: each is a quarter of the weights
    masks: dict[str, Callable[[], Mask]] = {
        "base": lambda: {name: torch.zeros_like(part) for name, part in mask.items()},
        "graft": lambda: mask,
        "complement": lambda: complement(region, mask),
        "all eligible": lambda: everything(region),
        "movement only": lambda: most_moved(region, max(entries, 1)),
    }
    rows = [_variant(judge, name, make()) for name, make in masks.items()]
    tuned: dict[str, Any] = {"model": "tuned", "entries": region.n_entries, **judge.described(judge.tuned, judge.tuned)}
    if judge.tuned_ood is not None:
        tuned["ood_accuracy"] = judge.tuned_ood.accuracy
    random = judge.random(mask, draws)
    rows.insert(1, tuned)
    rows.append(
        {
            "model": f"random ({draws} draws)",
            "entries": entries,
            "accuracy": random["random"],
            "low": random["random_low"],
            "high": random["random_high"],
        }
    )
    return pd.DataFrame(rows)


def _variant(judge: Judge, name: str, mask: Mask) -> dict[str, Any]:
    return {"model": name, "entries": entries_in(judge.blender.region, mask), **judge.measures(mask)}
