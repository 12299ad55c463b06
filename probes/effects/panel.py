"""The common result of effects: a score per model and condition, paired by prompt, beside its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.resampling import cluster_means
from probes.results import ProbeResult
from probes.scored import bracketed
from workbench.figures.series import labelled_points
from workbench.stats.bootstrap import difference_interval, mean_interval
from workbench.stats.fdr import q_values
from workbench.stats.intervals import Interval, Intervals
from workbench.stats.shares import share_difference, share_interval, with_exact_change
from workbench.stats.tests import paired_permutation, permutation
from workbench.typing import Float, Int

CHANGE = "tuned - base"
"""The model column of a line that compares both."""
COMPARED = (CHANGE, "base - tuned")
_LONGER = "allow longer answers (max_new_tokens), or take another metric"
_ADVICE = {
    "accuracy": "it reads the first token alone, so take metric contained where models answer in sentences",
    "contained": _LONGER, "answered": _LONGER, "exact_match": _LONGER,
}  # fmt: skip
"""Metric of right answers -> what to do where there is none."""


@dataclass(frozen=True, kw_only=True)
class EffectPanel(ProbeResult):
    """A score per model and condition.

    ``table``: ``group`` (the condition), ``model`` (base, tuned, or "tuned - base", paired by prompt), score, low, high
    (95 % over prompts), ``control``, ``p``, ``n``; ``q`` for the lines that compare
    both models. ``values``: the numbers by prompt behind it.
    """

    values: pd.DataFrame
    measured: str
    """What a score is."""
    heading: str
    verdict: str = ""
    """What follows from the table, in words; empty where nothing does."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers that are one for all prompts, by name."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Condition -> what its score is, where ``measured`` is not one for all."""

    title: ClassVar[str] = "Effect of tuning"
    unit: ClassVar[str] = "score"

    def line(self, condition: str, model: str = CHANGE) -> pd.Series:
        """One line of the table."""
        return self.table[(self.table["group"] == condition) & (self.table["model"] == model)].iloc[0]

    def figure(self) -> go.Figure:
        """Every line as a dot with its interval, the control as a cross."""
        names = self.table["group"].astype(str) + ", " + self.table["model"].astype(str)
        return labelled_points(self.table.assign(line=names), "line", title=self.heading, unit=self.measured)

    def summary(self) -> str:
        """The verdict, or the largest change."""
        if self.verdict:
            return f"{self.heading}: {self.verdict}{self._nothing_right()}. Control: {self.control}"
        changes = self.table[self.table["model"] == CHANGE]
        shown = changes if len(changes) else self.table
        row = shown.iloc[int(shown["score"].abs().fillna(0.0).to_numpy().argmax())]
        unit = self.units.get(row["group"], self.measured)
        p = "" if np.isnan(row["p"]) else f", p = {row['p']:.2g}"
        return (
            f"{self.heading}: {row['group']}, {row['model']}: {row['score']:+.3g}"
            f"{bracketed(row['low'], row['high'], '.3g')}{' ' * bool(unit)}{unit}, control {row['control']:+.3g}{p}"
            f"{self._nothing_right()}. Control: {self.control}"
        )

    def _nothing_right(self) -> str:
        """A caution where no answer is right: chat models seldom begin with it, and may not come to it."""
        own, metric = self.table[self.table["model"].isin(("base", "tuned"))], self.measured.partition(",")[0]
        if metric not in _ADVICE or not len(own) or (own["score"] != 0).any():
            return ""
        return f". No answer is right ({metric}) under either model, so nothing can be told: {_ADVICE[metric]}"


def interval_of(
    values: Float[np.ndarray, " prompt"],
    clusters: Int[np.ndarray, " prompt"] | None = None,
    seed: int = 0,
    *,
    of: Literal["shares", "changes", "numbers"] = "shares",
) -> Interval:
    """The mean with its interval: exact where shares, or changes of shares, all agree.

    ``of``: what values of 0, 1 and -1 are. Changes of shares that are all 0 bound gains and losses alike.
    """
    known = np.asarray(values, dtype=np.float64)
    if not len(known):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    if of == "numbers":
        return mean_interval(known, clusters=clusters, seed=seed)
    if np.isin(known, (0.0, 1.0)).all():
        share = share_interval(known, clusters=clusters, seed=seed)
        return share._replace(low=-share.high) if of == "changes" and not known.any() else share
    interval = mean_interval(known, clusters=clusters, seed=seed)
    if not np.isin(known, (-1.0, 0.0, 1.0)).all():
        return interval
    cells = Intervals(np.array([interval.estimate]), np.array([interval.low]), np.array([interval.high]), interval.n)
    return with_exact_change(cells, known[:, None], clusters).cell(0)


def scored_line(
    condition: str,
    model: str,
    values: Float[np.ndarray, " prompt"],
    control: float | Float[np.ndarray, " prompt"],
    clusters: Int[np.ndarray, " prompt"],
    seed: int,
    *,
    of: Literal["shares", "changes", "numbers"] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A line of the table: the mean of ``values``, tested by signs against ``control`` (a number or one per prompt).

    ``of``: see :func:`interval_of`; by default changes of shares where the model is a difference ("tuned - base").
    """
    interval = interval_of(values, clusters, seed, of=of or ("changes" if " - " in model else "shares"))
    beyond = np.asarray(values, np.float64) - control
    p = float(paired_permutation(cluster_means(beyond[:, None], clusters), seed=seed).p[0]) if len(beyond) else np.nan
    return {
        "group": condition, "model": model, "score": interval.estimate, "low": interval.low, "high": interval.high,
        "control": float(np.mean(control)), "p": p, "n": interval.n, **more,
    }  # fmt: skip


def spanned(line: Mapping[Any, Any]) -> str:
    """A line's score, signed, with its interval."""
    return f"{line['score']:+.2g}{bracketed(line['low'], line['high'], '.2g')}"


def between_line(
    condition: str, model: str, sides: tuple[np.ndarray, np.ndarray], clusters: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Any]:
    """A line of the table: the mean of one set of prompts less that of another, tested by exchanging members."""
    if model == CHANGE:  # 0 on every prompt is no share of which none is a hit
        interval = difference_interval(*sides, paired=False, clusters=clusters, seed=seed)
    else:
        interval = share_difference(*sides, clusters=clusters, seed=seed)
    units = [cluster_means(side[:, None], own) for side, own in zip(sides, clusters, strict=True)]
    return {
        "group": condition, "model": model, "score": interval.estimate, "low": interval.low, "high": interval.high,
        "control": 0.0, "p": float(permutation(*units, seed=seed).p[0]), "n": interval.n,
    }  # fmt: skip


def paired_lines(
    condition: str,
    sides: Mapping[str, np.ndarray],
    controls: Mapping[str, np.ndarray | float],
    clusters: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """Lines of base, tuned and their paired difference; a difference's control is that of the controls."""
    lines = [scored_line(condition, role, sides[role], controls[role], clusters, seed) for role in ("base", "tuned")]
    beyond = np.asarray(controls["tuned"]) - np.asarray(controls["base"])
    control = beyond if beyond.ndim else float(beyond)
    shares = all(np.isin(sides[role], (0.0, 1.0)).all() for role in ("base", "tuned"))
    changed = sides["tuned"] - sides["base"]
    of: Literal["changes", "numbers"] = "changes" if shares else "numbers"
    return [*lines, scored_line(condition, CHANGE, changed, control, clusters, seed, of=of)]


def columns_by_role(values: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """``values[role][name]`` [prompt] as the columns "role, name"."""
    return pd.DataFrame({f"{role}, {name}": column for role, own in values.items() for name, column in own.items()})


def table_of(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Lines as a table, with q over those that compare both models; lines of one model keep their p alone, which is no
    finding about tuning."""
    table = pd.DataFrame(list(lines))
    p = table["p"].to_numpy(float)
    compared = table["model"].isin(COMPARED).to_numpy()
    q = np.full(len(table), np.nan)
    q[compared] = q_values(p[compared])
    return table.assign(q=q)
