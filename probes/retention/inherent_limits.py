"""What tuning really added: the tuned model asked plainly against the base behind examples, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy import stats

from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import scored_line, table_of
from probes.effects.rewriting import column_of, with_demonstrations
from probes.replay import counted
from probes.results import ProbeResult, Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts

FEWEST_TASKS = 3
DRAWS = 2_000


@dataclass(frozen=True, kw_only=True)
class InherentLimits(ProbeResult):
    """Per task the tuned model's plain score less the base's few-shot score.

    ``table``: ``group`` (the task), score = tuned zero-shot - base few-shot with its interval and q, ``control`` = base
    zero-shot - base few-shot, ``tuned``, ``base_few_shot``, ``base_zero_shot``, ``residual``: what the tuned model does
    beyond the straight line that predicts it from the base's few-shot scores.
    ``correlation``: of the tasks' scores (Spearman's rho, its interval over prompts within tasks, p over exchanged
    tasks), and of the control, the base's zero-shot scores.
    """

    correlation: dict[str, float]

    title: ClassVar[str] = "Tuned against few-shot base"
    unit: ClassVar[str] = "tuned zero-shot - base few-shot"

    def figure(self) -> go.Figure:
        """One point per task."""
        return labelled_points(self.table, "group", title=self.title, unit=self.unit)

    def summary(self) -> str:
        correlation = self.correlation
        beyond = self.table[(self.table["q"] < 0.05) & (self.table["score"] > 0)]["group"].tolist()
        return (
            f"The tuned model's scores follow the base's few-shot ones over {len(self.table)} tasks: rho "
            f"{correlation['rho']:.2f} [{correlation['low']:.2f}, {correlation['high']:.2f}], p = "
            f"{correlation['p']:.2g} (base zero-shot {correlation['control']:.2f}); beyond the base's few-shot score: "
            f"{', '.join(map(str, beyond)) or 'no task'}. Control: {self.control}"
        )


@method(
    "inherent-limits",
    group="retention",
    question="Did tuning add ability, or does the base do as well behind a few examples?",
    papers=(
        "The Inherent Limits of Pretrained LLMs: The Unexpected Convergence of Instruction Tuning and In-Context "
        "Learning Capabilities",
    ),
    needs=Needs(columns=("answer",)),
    cost="one scored pass of the tuned model and two of the base",
    example="--tasks task --shots 4",
)
def inherent_limits(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    tasks: str = "task",
    shots: int = 4,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> InherentLimits:
    """The tuned model's zero-shot score of every task against the base's few-shot score (Bigoulaeva et al. 2025).

    Where the two agree task by task, tuning made the base's ability available without examples and added none; the
    residual of a task is what it added, or lost.

    Args:
        pair: Both models.
        prompts: Rows with an answer, of three or more tasks.
        tasks: The column that names a row's task.
        shots: Examples of the same task before a prompt of the base.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of examples and intervals.

    Returns:
        An :class:`InherentLimits`.

    Raises:
        UserError: Fewer than three tasks, or a task with too few rows for its examples.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    of = np.array([str(value) for value in column_of(rows, tasks, what="the task it belongs to")])
    names = list(dict.fromkeys(of.tolist()))
    if len(names) < FEWEST_TASKS:
        raise UserError(f"A correlation over {len(names)} tasks says nothing: give rows of three or more tasks.")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    with counted(pair.base, pair.tuned) as passes:
        scores = {
            "tuned": answer_scores(pair.tuned, rows, metric, **options),
            "base_few_shot": answer_scores(pair.base, demonstrated(rows, of, shots, seed), metric, **options),
            "base_zero_shot": answer_scores(pair.base, rows, metric, **options),
        }
    return InherentLimits(
        table=_table(scores, of, names, rows.clusters, seed),
        control="the base's zero-shot score in the place of the tuned model's",
        provenance=Provenance.of("inherent_limits", pair, rows, seed=seed, forward_passes=passes.forward),
        correlation=correlation(scores, of, names, seed),
    )  # fmt: skip


def demonstrated(rows: Prompts, of: np.ndarray, shots: int, seed: int) -> Prompts:
    """Every row behind examples of its own task."""
    prompts = [row for row in rows]
    for name in np.unique(of):
        places = np.flatnonzero(of == name)
        own = rows[places]
        try:
            shown = with_demonstrations(own, own, shots, seed)
        except UserError as error:
            raise UserError(f"Task {str(name)!r}: {error}") from error
        for place, row in zip(places, shown, strict=True):
            prompts[int(place)] = row
    return Prompts(prompts)


def correlation(scores: dict[str, np.ndarray], of: np.ndarray, names: list[str], seed: int) -> dict[str, float]:
    """Spearman's rho over tasks between tuned zero-shot and base few-shot scores."""
    means = {arm: np.array([values[of == name].mean() for name in names]) for arm, values in scores.items()}
    rho = _rho(means["tuned"], means["base_few_shot"])
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        resampled = [random.choice(np.flatnonzero(of == name), int((of == name).sum())) for name in names]
        drawn.append(
            _rho(
                *(
                    np.array([scores[arm][members].mean() for members in resampled])
                    for arm in ("tuned", "base_few_shot")
                )
            )
        )
    mixed = [_rho(random.permutation(means["tuned"]), means["base_few_shot"]) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    p = (1 + sum(value >= rho - 1e-12 for value in mixed)) / (1 + DRAWS)
    control = _rho(means["base_zero_shot"], means["base_few_shot"])
    return {"rho": rho, "low": float(low), "high": float(high), "p": float(p), "control": control}


def _rho(first: np.ndarray, second: np.ndarray) -> float:
    """0 where one side is the same for all tasks."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def _table(
    scores: dict[str, np.ndarray], of: np.ndarray, names: list[str], clusters: np.ndarray, seed: int
) -> pd.DataFrame:
    lines = []
    for name in names:
        own = of == name
        arms = {arm: values[own] for arm, values in scores.items()}
        added = arms["tuned"] - arms["base_few_shot"]
        line = scored_line(name, "tuned - base", added, 0.0, clusters[own], seed)
        line["control"] = float((arms["base_zero_shot"] - arms["base_few_shot"]).mean())
        lines.append({**line, **{arm: float(values.mean()) for arm, values in arms.items()}})
    table = table_of(lines)
    x, y = table["base_few_shot"].to_numpy(), table["tuned"].to_numpy()
    slope, offset = np.polyfit(x, y, 1) if np.ptp(x) > 0 else (0.0, y.mean())
    return table.assign(residual=y - (slope * x + offset))
