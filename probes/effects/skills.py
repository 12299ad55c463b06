"""What tuning did skill by skill, and to what training visited against what it did not: no single number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from probes.call_settings import call_settings
from probes.effects.answers import Measure, role_scores
from probes.effects.panel import CHANGE, EffectPanel, between_line, paired_lines, table_of
from probes.effects.rewriting import column_of, text_of
from probes.replay import counted
from probes.resampling import shuffled_labels
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts

DRAWS = 2_000


@method(
    "skill-profile",
    group="effects",
    question="Which skills did tuning raise and which did it cost?",
    papers=(
        "Specialist or Generalist? Instruction Tuning for Specific NLP Tasks",
        "Mixing It Up: The Cocktail Effect of Multi-Task Fine-Tuning on LLM Performance -- A Case Study in Finance",
    ),
    needs=Needs(columns=("answer",)),
    cost="one scored pass of each model",
    example="--skills skill",
)
def skill_profile(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    skills: str = "skill",
    kinds: str = "",
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """The change of every skill with its interval, and whether skills changed differently at all.

    Any two models make a pair: base and tune, a specialist and a generalist, a single-task tune and a multi-task one
    (the cocktail). ``kinds`` puts skills into kinds (understanding, reasoning, facts; task scores, domain knowledge),
    reported beside them. The control of a skill is the mean change over all other prompts; ``numbers`` hold the test
    that one number would do: the spread of the skills' changes against skills dealt to the prompts at random.

    Args:
        pair: Both models.
        prompts: Rows with an answer and a skill.
        skills: The column of the skill.
        kinds: The column of the kind of skill; empty for none.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of intervals and of the test.

    Returns:
        An :class:`EffectPanel`; ``group`` is the skill (or "kind: ...").

    Raises:
        UserError: A row has no answer or skill, or there is only one skill.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    of = np.array([str(value) for value in column_of(rows, skills)])
    if len(np.unique(of)) < 2:
        raise UserError(f"All rows have the skill {of[0]!r}: give rows of two or more to compare.")
    kind = np.array([f"kind: {value}" for value in column_of(rows, kinds)]) if kinds else None
    with counted(pair.base, pair.tuned) as passes:
        scores = role_scores(pair, rows, metric, max_new_tokens=max_new_tokens, batch_size=batch_size)
    lines = [
        line for labels in (of, kind) if labels is not None for line in skill_lines(scores, labels, rows.clusters, seed)
    ]
    table, spread = table_of(lines), spread_of(scores["tuned"] - scores["base"], of, rows.clusters, seed)
    return EffectPanel(
        table=table,
        control="the mean change of all other prompts (of a model: its mean over all other prompts)",
        provenance=Provenance.of("skill_profile", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({**scores, "skill": of}),
        measured=metric,
        heading="Change by skill",
        verdict=_verdict(table, spread),
        numbers=spread,
    )  # fmt: skip


def skill_lines(scores: dict[str, np.ndarray], of: np.ndarray, clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Lines of every skill; q of the change is against no change, the control column shows the other prompts."""
    lines = []
    for name in dict.fromkeys(of.tolist()):
        own = of == name
        sides = {role: values[own] for role, values in scores.items()}
        own_lines = paired_lines(name, sides, {"base": 0.0, "tuned": 0.0}, clusters[own], seed)
        others = {role: float(values[~own].mean()) for role, values in scores.items()}
        others[CHANGE] = others["tuned"] - others["base"]
        lines += [{**line, "control": others[line["model"]]} for line in own_lines]
    return lines


def spread_of(change: np.ndarray, of: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, float]:
    """Spread (weighted standard deviation) of the skills' mean changes, and p with skills dealt at random."""
    _, number = np.unique(of, return_inverse=True)

    def spread(labels: np.ndarray) -> float:
        counts = np.bincount(labels)
        means = np.bincount(labels, weights=change) / counts
        return float(np.sqrt((counts * (means - change.mean()) ** 2).sum() / counts.sum()))

    seen = spread(number)
    null = np.array([spread(shuffled_label) for shuffled_label in shuffled_labels(number, DRAWS, seed, clusters)])
    return {
        "spread over skills": seen, "spread by chance": float(null.mean()),
        "p of the spread": float((1 + (null >= seen - 1e-12).sum()) / (1 + DRAWS)),
    }  # fmt: skip


def _verdict(table: pd.DataFrame, spread: dict[str, float]) -> str:
    change = table[table["model"] == CHANGE]
    up = change[(change["q"] < 0.05) & (change["score"] > 0)]["group"].tolist()
    down = change[(change["q"] < 0.05) & (change["score"] < 0)]["group"].tolist()
    alike = "" if spread["p of the spread"] < 0.05 else "; skills do not differ beyond chance"
    most = change.iloc[int(change["score"].abs().fillna(0).to_numpy().argmax())]
    largest = (
        f"most: {most['group']} {most['score']:+.2g} [{most['low']:.2g}, {most['high']:.2g}], others "
        f"{most['control']:+.2g}, q = {most['q']:.2g}"
    )
    return f"up: {', '.join(up) or 'none'}; down: {', '.join(down) or 'none'}; {largest}{alike}"


@method(
    "visited",
    group="effects",
    question="Did tuning forget what its data never visited?",
    papers=("Fine-tuning Reinforcement Learning Models is Secretly a Forgetting Mitigation Problem",),
    needs=Needs(columns=("answer",)),
    cost="one scored pass of each model",
    example="--training train.jsonl",
)
def visited_forgetting(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    training: Annotated[Any, As("prompts")] = None,
    column: str = "visited",
    near: float = 0.5,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """The change on prompts that tuning visited, and on those that it did not (Wolczyk et al. 2024).

    Visited is what ``column`` says, or with ``training`` a prompt that shares at least ``near`` of its words with some
    training row (Jaccard overlap of word sets). Forgetting of the unvisited is a change below 0 there while the visited
    hold; the difference is tested by exchanging prompts between both parts.

    Args:
        pair: Base and tuned model.
        prompts: Rows with an answer, of both parts.
        training: The rows that the model was tuned on (early in training, say).
        column: A column of true and false, read where no training rows are given.
        near: Overlap from which on a prompt counts as visited.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is visited, unvisited and "unvisited - visited".

    Raises:
        UserError: All prompts are of one part.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    seen = is_visited(rows, training, column, near)
    if seen.all() or not seen.any():
        raise UserError(
            f"All {len(rows)} prompts are {'visited' if seen.all() else 'unvisited'}: give prompts of both kinds, or "
            "another near=."
        )
    with counted(pair.base, pair.tuned) as passes:
        scores = role_scores(pair, rows, metric, max_new_tokens=max_new_tokens, batch_size=batch_size)
    parts = {"visited": seen, "unvisited": ~seen}
    lines = [
        line for name, own in parts.items()
        for line in paired_lines(name, {role: score[own] for role, score in scores.items()},
                                 {"base": 0.0, "tuned": 0.0}, rows.clusters[own], seed)
    ]  # fmt: skip
    change = scores["tuned"] - scores["base"]
    lines.append(between_line("unvisited - visited", CHANGE, (change[~seen], change[seen]),
                              (rows.clusters[~seen], rows.clusters[seen]), seed))  # fmt: skip
    return EffectPanel(
        table=table_of(lines),
        control="no change; of the difference, prompts exchanged between the parts",
        provenance=Provenance.of(
            "visited_forgetting", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, training=None if training is None else Prompts.of(training)),
        ),
        values=pd.DataFrame({**scores, "visited": seen}),
        measured=metric,
        heading="Forgetting of what training did not visit",
        numbers={"visited": float(seen.sum()), "unvisited": float((~seen).sum())},
    )  # fmt: skip


def is_visited(rows: Prompts, training: Any, column: str, near: float) -> np.ndarray:
    """[prompt] whether tuning visited it."""
    if training is None:
        return np.array([bool(value) for value in column_of(rows, column, what="or give the training rows")])
    training_words = [_words(text_of(row)) for row in Prompts.of(training)]
    return np.array([max(_overlap(_words(text_of(row)), other) for other in training_words) >= near for row in rows])


def _words(text: str) -> set[str]:
    return set(text.casefold().split())


def _overlap(first: set[str], second: set[str]) -> float:
    either = first | second
    return len(first & second) / len(either) if either else 0.0
