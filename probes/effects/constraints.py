"""How many of several wishes at once a text fulfils, and how that falls with their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from probes.effects.answers import greedy_texts
from probes.effects.panel import EffectPanel, paired_lines, table_of
from probes.effects.rewriting import column_of
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.behaviour.scorers import Behaviour, behaviour
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts


@method(
    "constraints",
    group="effects",
    question="How many constraints at once does each model satisfy?",
    papers=(
        "UltraGen: Extremely Fine-grained Controllable Generation via Attribute Reconstruction and Global Preference "
        "Optimization",
    ),
    cost="one generated answer per prompt and model",
    example="--column constraints",
)
def constraint_satisfaction(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    column: str = "constraints",
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Share of a prompt's constraints that each model's text meets, by how many there are (Yun et al. 2025).

    A constraint is a behaviour that counts texts, as "contains:river", "begins:Dear", "regex:^.{0,200}$",
    "language:en". The control judges each text by another row's constraints of the same number (of any number where
    there is none): what texts meet without being asked.

    Args:
        pair: Both models.
        prompts: Rows that ask for something, with their constraints as a list (or text with ; between).
        column: The column of the constraints.
        max_new_tokens: Length of a text.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "all", "k constraints", and "whole, k" (all k met at once);
        ``numbers`` holds the rank correlation of satisfaction and number for each model.

    Raises:
        UserError: A row has no constraints, or one that is no behaviour with yes or no as its answer.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    wanted = [read_constraints(written, number) for number, written in enumerate(column_of(rows, column))]
    size = np.array([len(rules) for rules in wanted])
    others = _others(size)
    met, control = {}, {}
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            texts = greedy_texts(pair.models[role], rows, max_new_tokens, batch_size)
            met[role] = np.array(
                [_share(text, rules, row) for text, rules, row in zip(texts, wanted, rows, strict=True)]
            )
            control[role] = np.array([
                _share(text, wanted[other], row) for text, other, row in zip(texts, others, rows, strict=True)
            ])  # fmt: skip
    return EffectPanel(
        table=table_of(constraint_lines(met, control, size, rows.clusters, seed)),
        control="the texts judged by the constraints of another row",
        provenance=Provenance.of("constraint_satisfaction", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({**met, "constraints": size}),
        measured="share of constraints met",
        heading="Constraints met",
        numbers={f"falls with number, {role}": _rho(size, shares) for role, shares in met.items()},
    )  # fmt: skip


def read_constraints(written: Any, number: int) -> list[Behaviour]:
    """The constraints of a row as behaviours."""
    texts = [word.strip() for word in written.split(";")] if isinstance(written, str) else list(written)
    rules = [behaviour(text) for text in texts if text]
    if not rules or not all(rule.share and rule.states is None for rule in rules):
        raise UserError(
            f"Row {number}: {written!r} are no constraints with yes or no as their answer: give contains:..."
        )
    return rules


def constraint_lines(
    met: dict[str, np.ndarray], control: dict[str, np.ndarray], size: np.ndarray, clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Lines over all prompts, and for each number of constraints the share met and the share of texts that meet all."""
    lines = paired_lines("all", met, control, clusters, seed)
    for count in np.unique(size):
        own = size == count
        sides, beside = ({role: value[own] for role, value in values.items()} for values in (met, control))
        lines += paired_lines(f"{count} constraints", sides, beside, clusters[own], seed)
        whole, also = (
            {role: (value == 1).astype(float) for role, value in values.items()} for values in (sides, beside)
        )
        lines += paired_lines(f"whole, {count}", whole, also, clusters[own], seed)
    return lines


def _share(text: str, wanted: list[Behaviour], row: Any) -> float:
    return float(np.mean([rule(text, row) for rule in wanted]))


def _others(size: np.ndarray) -> list[int]:
    """For each row the next one with as many constraints, or simply the next."""
    others = []
    for number, count in enumerate(size):
        later = [(number + step) % len(size) for step in range(1, len(size))] or [number]
        others.append(next((row for row in later if size[row] == count), later[0]))
    return others


def _rho(size: np.ndarray, met: np.ndarray) -> float:
    return 0.0 if np.ptp(size) == 0 or np.ptp(met) == 0 else float(stats.spearmanr(size, met).statistic)
