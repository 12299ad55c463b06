"""How far a tuning generalizes: to new rows of its tasks, new tasks of its categories, new categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from probes.call_settings import call_settings
from probes.effects.answers import Measure, role_scores
from probes.effects.panel import CHANGE, EffectPanel, table_of
from probes.effects.rewriting import column_of, text_of
from probes.effects.skills import skill_lines
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts

LEVELS = ("rows of training", "new rows of its tasks", "new tasks of its categories", "new categories")
"""From near to far. The last three are OPT-IML's levels."""


@method(
    "generalization",
    group="effects",
    question="Does what was tuned hold for new rows, new tasks, new categories, and other languages?",
    papers=("OPT-IML: Scaling Language Model Instruction Meta Learning through the Lens of Generalization",),
    needs=Needs(columns=("answer",)),
    cost="one scored pass of each model",
    example="--training train.jsonl --category topic --language language",
    any_adapter="whether the measure moved at all",
)
def generalization_levels(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    training: Annotated[Any, As("prompts")],
    task: str = "task",
    category: str = "category",
    language: str = "",
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """The change by the level at which each prompt is new to the training (Iyer et al. 2022).

    A prompt is a row of training where its very text is, a new row where its task is one of training's, a new task
    where only its category is, else of a new category. The control of a level is the mean change of all other prompts.

    Args:
        pair: Base and tuned model.
        prompts: Rows with an answer, a task and a category.
        training: The rows that the model was tuned on, with the same columns.
        task: The column of the task.
        category: The column of the task's category.
        language: The column of the language; then it is reported by language too, seen in training or not.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is the level, or "language xx (seen)".

    Raises:
        UserError: A row lacks its task or category, or all prompts are on one level and no language is named.
    """
    check_pair(pair, prompts)
    rows, taught = Prompts.of(prompts), Prompts.of(training)
    level = levels_of(rows, taught, task, category)
    if len(np.unique(level)) < 2 and not language:
        raise UserError(f"All prompts are {level[0]!r}: give prompts of two levels or more to compare.")
    with counted(pair.base, pair.tuned) as passes:
        scores = role_scores(pair, rows, metric, max_new_tokens=max_new_tokens, batch_size=batch_size)
    ordered = np.argsort([LEVELS.index(name) for name in level], kind="stable")
    lines = skill_lines(
        {role: score[ordered] for role, score in scores.items()}, level[ordered], rows.clusters[ordered], seed
    )
    spoken = None if not language else _languages(rows, taught, language)
    if spoken is not None:
        lines += skill_lines(scores, spoken, rows.clusters, seed)
    table = table_of(lines)
    return EffectPanel(
        table=table,
        control="the mean change of all other prompts (of a model: its mean over all other prompts)",
        provenance=Provenance.of(
            "generalization_levels", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, training=taught),
        ),
        values=pd.DataFrame({**scores, "level": level, **({} if spoken is None else {"language": spoken})}),
        measured=metric,
        heading="Change by what is new",
        verdict=_verdict(table),
    )  # fmt: skip


def levels_of(rows: Prompts, training: Prompts, task: str, category: str) -> np.ndarray:
    """[prompt] one of :data:`LEVELS`."""
    texts = {text_of(row) for row in training}
    tasks, categories = (
        {str(value) for value in column_of(training, name, what="which the training rows need too")}
        for name in (task, category)
    )
    levels = []
    for row, own, kind in zip(rows, column_of(rows, task), column_of(rows, category), strict=True):
        known = (text_of(row) in texts, str(own) in tasks, str(kind) in categories, True)
        levels.append(LEVELS[known.index(True)])
    return np.array(levels)


def _languages(rows: Prompts, training: Prompts, language: str) -> np.ndarray:
    seen = {str(value) for value in column_of(training, language)}
    own = [str(value) for value in column_of(rows, language)]
    return np.array([f"language {name} ({'seen' if name in seen else 'unseen'})" for name in own])


def _verdict(table: pd.DataFrame) -> str:
    changes = table[table["model"] == CHANGE]
    return "; ".join(
        f"{row['group']} {row['score']:+.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for row in changes.to_dict("records")
    )
