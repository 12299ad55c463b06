"""Whether a preference follows the context: rewards of the same two answers in two contexts that turn it around."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from interventions.training.reward_head import RewardHead, both_answers
from probes.effects.answers import margins
from probes.effects.panel import EffectPanel, paired_lines, table_of
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts

PARTS = ("right in context", "right in both contexts", "follows the context")


@method(
    "context-preference",
    group="effects",
    question="Does the model's preference follow the context it is given, or only the answers themselves?",
    papers=("Improving Context-Aware Preference Modeling for Language Models",),
    needs=Needs(columns=("answer", "distractor", "contrast")),
    cost="four scored passes of each model",
    example="",
    any_adapter="whether preferences moved at all",
)
def context_preference(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    head: Annotated[str | Path | None, As("file")] = None,
    tuned_head: Annotated[str | Path | None, As("file")] = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Compare the reward of both answers in each row's context and in the contrast's, where the other one is right.

    The reward is a scalar head's (``iv.train_reward_head``), or without one the answer's log-probability. "follows the
    context" is half the change of the margin (answer - distractor) from one context to the other, in nats or units of
    the head: a reward that reads the answers alone has 0. Its control swaps the rows' contexts for those of other
    groups, so that the answers stay and the context says nothing.

    Args:
        pair: Base and tuned model.
        prompts: Rows whose contrast is the context in which the distractor is right.
        head: A reward head of the base.
        tuned_head: A reward head of the tuned model; by default the base's.
        batch_size: Rows per forward pass.
        seed: Of the swapped contexts and the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "right in context", "right in both contexts" or "follows the context".

    Raises:
        UserError: A row lacks its contrast, answer or distractor, or all rows are of one group.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    for number, row in enumerate(rows):
        if row.contrast is None or not row.answer or not row.distractor:
            raise UserError(f"Prompt {number} lacks a contrast, an answer or a distractor: every row needs all three.")
    first = None if head is None else RewardHead.load(head)
    heads = {"base": first, "tuned": first if tuned_head is None else RewardHead.load(tuned_head)}
    other = with_other_contexts(rows, seed)
    with counted(pair.base, pair.tuned) as passes:
        scores = {role: preferences(pair.models[role], rows, heads[role], batch_size) for role in ("base", "tuned")}
        beside = {role: preferences(pair.models[role], other, heads[role], batch_size) for role in ("base", "tuned")}
    lines = []
    for part in PARTS:
        sides, controls = ({role: values[part] for role, values in of.items()} for of in (scores, beside))
        lines += paired_lines(part, sides, controls, rows.clusters, seed)
    return EffectPanel(
        table=table_of(lines),
        control="the same answers behind contexts of other groups",
        provenance=Provenance.of("context_preference", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({f"{role}: {part}": score[part] for role, score in scores.items() for part in PARTS}),
        measured="share of prompts",
        units={PARTS[2]: "nats" if head is None else "units of the head"},
        heading="Preference in context",
    )  # fmt: skip


def preferences(model: AdaptedModel, rows: Prompts, head: RewardHead | None, batch_size: int) -> dict[str, np.ndarray]:
    """Part -> [prompt]."""
    own = _margins(model, rows, head, batch_size)
    turned = -_margins(model, rows.contrasts, head, batch_size)
    return {
        "right in context": (own > 0).astype(float), "right in both contexts": ((own > 0) & (turned < 0)).astype(float),
        "follows the context": (own - turned) / 2,
    }  # fmt: skip


def _margins(model: AdaptedModel, rows: Prompts, head: RewardHead | None, batch_size: int) -> np.ndarray:
    """Reward of the answer minus that of the distractor."""
    if head is None:
        return margins(model, rows, batch_size=batch_size)
    answer, distractor = both_answers(rows, model)
    apart = head.score(model, answer, batch_size) - head.score(model, distractor, batch_size)
    return apart.double().numpy()


def with_other_contexts(rows: Prompts, seed: int) -> Prompts:
    """The rows with prompt and contrast of a row of another group, one context or the other at random."""
    import dataclasses

    random, clusters = np.random.default_rng(seed), rows.clusters
    if len(np.unique(clusters)) < 2:
        raise UserError("All rows are of one group, so none can lend another its context: give two groups or more.")
    made = []
    for row, own in zip(rows, clusters, strict=True):
        lender = rows[int(random.choice(np.flatnonzero(clusters != own)))]
        source = lender if random.random() < 0.5 else lender.counterpart
        assert source is not None
        both: dict[str, Any] = {"prompt": source.prompt, "messages": source.messages, "input_ids": source.input_ids}
        back = lender.contrast if source is lender else getattr(lender, lender.kind)
        made.append(dataclasses.replace(row, **both, contrast=back))
    return Prompts(made)
