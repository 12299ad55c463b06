"""Scores of a harness, sample by sample, as a comparison of models with intervals paired by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from workbench.behaviour.subject import AppliedRecipe, Subject
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.stats.bootstrap import mean_interval

Scores = Mapping[tuple[str, str, str], float]
"""(task, metric, sample) -> score."""


@dataclass(frozen=True)
class EvalComparison:
    """What a harness scored, and how models differ in it."""

    table: pd.DataFrame
    """task, metric, model, n, score, low, high, and against the base: change, change_low, change_high (95 %, bootstrap
    over samples; the change is paired by sample)."""
    rows: pd.DataFrame
    """task, metric, sample, and one column of scores per model."""
    harness: str
    """Name and version of the package that made prompts and scores."""

    def summary(self) -> str:
        """One line per model and metric."""
        return "\n".join(
            f"{row['task']} {row['metric']}, {row['model']}: {row['score']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            for row in self.table.to_dict("records")
        )


def subjects_of(pair: ModelPair, recipe: AppliedRecipe | Mapping[str, AppliedRecipe] | None) -> list[Subject]:
    """Base, tuned, and the tuned model under each recipe."""
    named = {} if recipe is None else recipe if isinstance(recipe, Mapping) else {"tuned + recipe": recipe}
    if taken := {"base", "tuned"} & set(named):
        raise UserError(f"A recipe cannot be called {min(taken)!r}, as a model is: give it another name.")
    plain = [Subject(role, model) for role, model in pair.models.items()]
    return plain + [Subject(name, pair.tuned, own) for name, own in named.items()]


def compared(scores: Mapping[str, Scores], harness: str, seed: int) -> EvalComparison:
    """``scores``: name of each model -> its scores, the base first.

    Raises:
        UserError: The harness gave two models different samples, or none at all.
    """
    rows = pd.DataFrame({name: pd.Series(dict(own), dtype=float) for name, own in scores.items()})
    if rows.empty or rows.isna().any(axis=None):
        raise UserError(f"{harness} scored not the same samples for every model: look at its own log for errors.")
    rows.index.names = ["task", "metric", "sample"]
    lines = []
    for (task, metric), group in rows.groupby(level=["task", "metric"], sort=False):
        base = group.iloc[:, 0].to_numpy()
        for name in group:
            own = group[name].to_numpy()
            level, change = mean_interval(own, seed=seed), mean_interval(own - base, seed=seed)
            lines.append({
                "task": task, "metric": metric, "model": name, "n": len(own), "score": level.estimate,
                "low": level.low, "high": level.high, "change": change.estimate, "change_low": change.low,
                "change_high": change.high,
            })  # fmt: skip
    return EvalComparison(pd.DataFrame(lines), rows.reset_index(), harness)
