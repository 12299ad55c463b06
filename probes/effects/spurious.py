"""Which attributes of a prompt a tuned model leans on without reason, and what it gains when it cannot see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from interventions import ConceptAblation, Recipe
from probes.effects.answers import Measure, answer_scores, role_scores
from probes.effects.panel import EffectPanel, between_line, scored_line, table_of
from probes.effects.rewriting import column_of
from probes.halves import in_first_half
from probes.replay import counted
from probes.resampling import shuffled_labels
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.stats.controls import random_directions
from workbench.typing import Bool, Float, Tensor


@method(
    "spurious-attributes",
    group="effects",
    question="Which attribute does the tuned model lean on that only happens to go with the answer?",
    papers=("Black Sheep in the Herd: Playing with Spuriously Correlated Attributes for Vision-Language Recognition",),
    needs=Needs(columns=("answer",)),
    cost="a scored pass of each model, a recording, and eleven or more scored passes under ablation",
    example="--attributes cue,long",
)
def spurious_attributes(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    attributes: Sequence[str] = (),
    layer: int | float = 0.5,
    metric: Measure = "accuracy",
    controls: int = 10,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Score where an attribute agrees with the answer less where it does not, and with the attribute's direction
    shielded (Tian et al. 2025, for language models).

    An attribute is a column of true and false. Of classes of answers that have it more often than all rows do, rows
    with it agree, and of the other classes rows without it; a model that needs the attribute is worse on the rest.
    Shielding ablates the difference of means of rows with and without it, found on half of the prompts (set to their
    mean); the gain on the disagreeing rows of the other half is reported beside that of random directions.

    Args:
        pair: Both models.
        prompts: Rows with answers and the attributes; some where they disagree with the answer.
        attributes: The columns of the attributes.
        layer: Where an attribute is shielded: an index, or a fraction of the depth.
        metric: What is scored.
        controls: Random directions.
        max_new_tokens: Length of a generated answer.
        seed: Of halves, random directions and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "reliance on ..." (of base, tuned and their difference) and "gain when ...
        is shielded" (of the tuned model).

    Raises:
        UserError: No attributes, or one that all rows or none have, or that never disagrees with the answer.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if not attributes:
        raise UserError("There are no attributes to look at: name columns of true and false.")
    answers = np.array([str(value) for value in column_of(rows, "answer")])
    has = {name: read_attribute(rows, name) for name in attributes}
    agrees = {name: agreeing(answers, own, name) for name, own in has.items()}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    inside = in_first_half(rows, seed)
    site = pair.tuned.expand("resid_post", [layer])[0]
    bar = progress or Silent()
    bar.start("spurious attributes", len(attributes))
    lines: list[dict[str, Any]] = []
    with counted(pair.base, pair.tuned) as passes:
        scores = role_scores(pair, rows, metric, **options)
        states = record(pair.tuned, rows, site.name, batch_size=batch_size)[pair.tuned.role][site.name][:].float()
        for name, own in has.items():
            lines += reliance_lines(name, scores, agrees[name], rows.clusters, seed)
            test = ~inside & ~agrees[name]
            if test.sum() > 1 and 0 < own[inside].sum() < inside.sum():
                direction = _direction(states, own, inside)
                shielded = _shielded_gains(
                    pair, rows[test], site.layer or 0, direction, states[torch.from_numpy(inside)].mean(0), controls,
                    seed, metric, options, scores["tuned"][test],
                )  # fmt: skip
                line = scored_line(f"gain when {name} is shielded", "tuned", *shielded, rows.clusters[test], seed)
                lines.append(line)
            bar.advance()
    bar.finish()
    return EffectPanel(
        table=table_of(lines),
        control=f"of reliance none; of shielding, {controls} random directions",
        provenance=Provenance.of("spurious_attributes", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({**scores, **{f"{name} agrees": own for name, own in agrees.items()}}),
        measured=metric,
        heading="Reliance on attributes",
    )  # fmt: skip


def read_attribute(rows: Prompts, name: str) -> Bool[np.ndarray, " prompt"]:
    """[prompt] whether a row has it."""
    values = np.array([bool(value) for value in column_of(rows, name)])
    if values.all() or not values.any():
        raise UserError(f"{'All' if values.all() else 'No'} rows have {name!r}: give rows with and without it.")
    return values


def agreeing(answers: np.ndarray, has: np.ndarray, name: str) -> Bool[np.ndarray, " prompt"]:
    """[prompt] whether having or lacking the attribute goes with the row's answer, as most rows have it."""
    share = has.mean()
    usual = np.array([has[answers == answer].mean() >= share for answer in answers])
    agrees = has == usual
    if agrees.all() or not agrees.any():
        raise UserError(f"{name!r} always goes with the answer: give rows in which it does not, to tell them apart.")
    return agrees


def reliance_lines(
    name: str, scores: dict[str, np.ndarray], agrees: np.ndarray, clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Score where the attribute agrees less where it does not, of both models and of the change; random attributes as
    control."""
    sides = {**scores, "tuned - base": scores["tuned"] - scores["base"]}
    mixed = shuffled_labels(agrees.astype(np.int64), 200, seed, clusters).astype(bool)
    lines = []
    for role, values in sides.items():
        parts = values[agrees], values[~agrees]
        line = between_line(f"reliance on {name}", role, parts, (clusters[agrees], clusters[~agrees]), seed)
        random = [values[mask].mean() - values[~mask].mean() for mask in mixed]
        lines.append({**line, "control": float(np.mean(random))})
    return lines


def _direction(states: Float[Tensor, "prompt d"], has: np.ndarray, inside: np.ndarray) -> Float[Tensor, " d"]:
    own, other = (states[torch.from_numpy(inside & part)].mean(0) for part in (has, ~has))
    return torch.nn.functional.normalize(own - other, dim=0)


def _shielded_gains(  # noqa: PLR0913 (what is ablated, where, and how it is scored)
    pair: ModelPair, rows: Prompts, layer: int, direction: Tensor, mean: Tensor, controls: int, seed: int,
    metric: Measure, options: dict[str, Any], before: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(gain by prompt with the direction ablated, mean gain with random ones)."""
    gains = []
    for axis in (direction, *random_directions(direction, draws=max(controls, 10), seed=seed)[:controls]):
        recipe = Recipe([ConceptAblation(layer, axis[None], mean=mean)])
        gains.append(answer_scores(pair.tuned, rows, metric, recipe=recipe, **options) - before)
    return gains[0], np.mean(gains[1:], axis=0)
