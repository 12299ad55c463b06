"""Whether tuning changed how much of an answer comes from the context that is given with the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.effects.answers import Measure, role_scores
from probes.effects.panel import CHANGE, EffectPanel, paired_lines, table_of
from probes.effects.rewriting import column_of, retexted, text_of
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts

TEMPLATE = "{context}\n\n{question}"


@method(
    "context-use",
    group="effects",
    question="Did tuning make the model worse at using the context given with a question?",
    papers=("Fine-Tuning or Fine-Failing? Debunking Performance Myths in Large Language Models",),
    needs=Needs(columns=("answer",)),
    cost="three scored passes of each model",
    example="--context passage",
)
def context_use(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    context: str = "context",
    template: str = TEMPLATE,
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """The same questions without context, with the gold one, and with another row's (Barnett et al. 2024).

    Use of the context is the score with gold less the score without; "context use", tuned - base, is what tuning did to
    it. The control is the context of another question: what a change of length and form alone does.

    Args:
        pair: Both models.
        prompts: Questions with an answer and the passage that holds it.
        context: The column of the passage.
        template: Where {context} and {question} go.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of intervals and of the exchange of contexts.

    Returns:
        An :class:`EffectPanel`; ``group`` is without, gold, other, and "context use".

    Raises:
        UserError: A row has no passage or answer, or the template lacks a place.
    """
    check_pair(pair, prompts)
    if "{context}" not in template or "{question}" not in template:
        raise UserError(f"The template {template!r} must say where {{context}} and {{question}} go.")
    rows = Prompts.of(prompts)
    if len(rows) < 2:
        raise UserError("One question has no other's context as its control: give two or more.")
    passages = [str(value) for value in column_of(rows, context, what="the passage that holds the answer")]
    forms = {
        "without": rows,
        "gold": with_context(rows, passages, template),
        "other": with_context(rows, of_others(rows, passages, seed), template),
    }
    with counted(pair.base, pair.tuned) as passes:
        scores = {
            name: role_scores(pair, own, metric, max_new_tokens=max_new_tokens, batch_size=batch_size)
            for name, own in forms.items()
        }
    table = table_of(context_lines(scores, rows.clusters, seed))
    return EffectPanel(
        table=table,
        control="the context of another question",
        provenance=Provenance.of("context_use", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({
            f"{role}, {name}": values for name, own in scores.items() for role, values in own.items()
        }),
        measured=metric,
        heading="Use of the given context",
        verdict=_verdict(table, metric),
    )  # fmt: skip


def with_context(rows: Prompts, passages: Sequence[str], template: str) -> Prompts:
    """Every question behind its passage."""
    return Prompts([
        retexted(row, template.replace("{question}", text_of(row)).replace("{context}", passage))
        for row, passage in zip(rows, passages, strict=True)
    ])  # fmt: skip


def of_others(rows: Prompts, passages: Sequence[str], seed: int) -> list[str]:
    """For each row the passage of another row, of another answer where there is one."""
    random, passages_of_others = np.random.default_rng(seed), []
    for number, row in enumerate(rows):
        others = [n for n, other in enumerate(rows) if n != number and passages[n] != passages[number]]
        apart = [n for n in others if rows[n].answer != row.answer and str(row.answer) not in passages[n]]
        pool = apart or others or [n for n in range(len(rows)) if n != number]
        passages_of_others.append(passages[int(random.choice(pool))])
    return passages_of_others


def context_lines(scores: dict[str, dict[str, np.ndarray]], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Lines of each form, and of the use of the context beside that of another question's."""
    without = scores["without"]
    lines = [
        line for name, own in scores.items()
        for line in paired_lines(name, own, without if name != "without" else dict.fromkeys(own, 0.0), clusters, seed)
    ]  # fmt: skip
    gained, control = ({role: scores[name][role] - without[role] for role in without} for name in ("gold", "other"))
    return [*lines, *paired_lines("context use", gained, control, clusters, seed)]


def _verdict(table: pd.DataFrame, measured: str) -> str:
    row = table[(table["group"] == "context use") & (table["model"] == CHANGE)].iloc[0]
    said = "unchanged as far as these prompts can tell"
    if row["high"] < 0 and row["q"] < 0.05:
        said = "worse after tuning"
    if row["low"] > 0 and row["q"] < 0.05:
        said = "better after tuning"
    return (
        f"use of the context is {said}: {row['score']:+.3g} [{row['low']:.3g}, {row['high']:.3g}] {measured}, control "
        f"{row['control']:+.3g}, q = {row['q']:.2g}"
    )
