"""The chat template and the place of the evidence as factors: the same questions, one thing changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from probes.effects.answers import Measure, role_scores
from probes.effects.context_use import of_others
from probes.effects.panel import EffectPanel, paired_lines, scored_line, table_of
from probes.effects.rewriting import column_of, retexted, text_of
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts


@method(
    "template-effect",
    group="retention",
    question="How much of the change is the chat template, and how much the weights?",
    papers=("On the Loss of Context-awareness in General Instruction Fine-tuning",),
    needs=Needs(columns=("answer",)),
    cost="two scored passes of each model",
    example="--context passage",
)
def template_effect(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    context: str = "",
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Base and tuned with the chat template on and off: four scores, both effects, and their interaction.

    The template's effect on the tuned model less that on the base is what the tuning tied to the template: in Wang et
    al. 2024 context is used less where the template is on. With ``context`` the passage of that column stands before
    the question. The control of the template is its effect on the base.

    Args:
        pair: Both models, whose tokenizer has a chat template.
        prompts: Texts with answers; rows of messages cannot be read without the template.
        context: A column whose passage stands before the question; empty for none.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is off, on, and "on - off".

    Raises:
        UserError: There is no template, or a row is not text.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if not getattr(pair.tokenizer, "chat_template", None):
        raise UserError("The tokenizer has no chat template to switch: choose a pair whose tokenizer has one.")
    if any(row.prompt is None for row in rows):
        raise UserError("A row of messages or token ids cannot be read without the template: give prompts as text.")
    if context:
        passages = [str(value) for value in column_of(rows, context)]
        rows = Prompts(
            [retexted(row, f"{passage}\n\n{text_of(row)}") for row, passage in zip(rows, passages, strict=True)]
        )
    forms = {"off": _chat(rows, False), "on": _chat(rows, True)}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    with counted(pair.base, pair.tuned) as passes:
        scores = {name: role_scores(pair, own, metric, **options) for name, own in forms.items()}
    zero = {"base": 0.0, "tuned": 0.0}
    lines = [line for name, own in scores.items() for line in paired_lines(name, own, zero, rows.clusters, seed)]
    effect = {role: scores["on"][role] - scores["off"][role] for role in zero}
    lines += paired_lines("on - off", effect, {"base": 0.0, "tuned": effect["base"]}, rows.clusters, seed)
    lines[-1]["p"] = scored_line("", "", effect["tuned"] - effect["base"], 0.0, rows.clusters, seed)["p"]
    return EffectPanel(
        table=table_of(lines),
        control="0; for the template's effect on the tuned model, that on the base",
        provenance=Provenance.of(
            "template_effect", pair, Prompts.of(prompts), seed=seed, forward_passes=passes.forward,
        ),
        values=pd.DataFrame({f"{role}, {name}": score for name, own in scores.items() for role, score in own.items()}),
        measured=metric,
        heading="Chat template",
    )  # fmt: skip


def _chat(rows: Prompts, on: bool) -> Prompts:
    return Prompts([dataclasses.replace(row, chat=on, contrast=None) for row in rows])


@method(
    "position-effect",
    group="retention",
    question="Does it matter where in the prompt the evidence stands, and did tuning change that?",
    needs=Needs(columns=("answer",)),
    cost="a scored pass of each model per place",
    example="--context passage --among 4",
)
def position_effect(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    context: str = "context",
    among: int = 4,
    places: int = 3,
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """The gold passage first, in the middle and last among passages of other questions (lost in the middle, Liu 2023).

    The control is the same passages with another one in the gold one's place.

    Args:
        pair: Both models.
        prompts: Questions with an answer and the passage that holds it.
        context: The column of the passage.
        among: Passages in all.
        places: How many places of the gold one are tried, evenly from first to last.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the other passages and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "place k of n", and "last - first".

    Raises:
        UserError: Fewer passages than asked for.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    passages = [str(value) for value in column_of(rows, context, what="the passage that holds the answer")]
    if not 2 <= places <= among <= len(rows):
        raise UserError(
            f"{places} places among {among} passages need 2 <= places <= among <= {len(rows)}, the number of rows."
        )
    others = [of_others(rows, passages, seed + number) for number in range(among)]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    spots = [round(number * (among - 1) / (places - 1)) for number in range(places)]
    with counted(pair.base, pair.tuned) as passes:
        without = role_scores(pair, _among(rows, others, None, passages), metric, **options)
        scores = {
            f"place {spot + 1} of {among}": role_scores(pair, _among(rows, others, spot, passages), metric, **options)
            for spot in spots
        }
    lines = [line for name, own in scores.items() for line in paired_lines(name, own, without, rows.clusters, seed)]
    first, last = (scores[name] for name in (next(iter(scores)), list(scores)[-1]))
    apart = {role: last[role] - first[role] for role in first}
    lines += paired_lines("last - first", apart, {"base": 0.0, "tuned": 0.0}, rows.clusters, seed)
    return EffectPanel(
        table=table_of(lines),
        control="the same passages without the gold one",
        provenance=Provenance.of("position_effect", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({f"{role}, {name}": score for name, own in scores.items() for role, score in own.items()}),
        measured=metric,
        heading="Place of the evidence",
    )  # fmt: skip


def _among(rows: Prompts, others: list[list[str]], spot: int | None, gold: list[str]) -> Prompts:
    """Every question behind passages of others, the gold one at ``spot`` (None: nowhere)."""
    made = []
    for number, row in enumerate(rows):
        passages = [own[number] for own in others]
        if spot is not None:
            passages[spot] = gold[number]
        made.append(retexted(row, "\n\n".join([*passages, text_of(row)])))
    return Prompts(made)
