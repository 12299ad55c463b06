"""Where a model falls short of its tuned self: in what its states hold, or in reading them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import CHANGE, EffectPanel, scored_line, table_of
from probes.effects.rewriting import column_of, with_demonstrations
from probes.replay import counted
from probes.representation.classifier import Kind, classes_of, dealt_folds, held_out_right
from probes.resampling import shuffled_labels
from probes.results import Provenance
from probes.retention.many_shot import exchanged_answers
from workbench.argument_checks import check_pair
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record

ARMS = ("base, zero-shot", "base, in context", "base, probe", "tuned, probe", "tuned, zero-shot")
GAPS = {
    "representation gap": ("tuned, zero-shot", "base, probe"),
    "read-out gap": ("base, probe", "base, in context"),
    "added by tuning to the states": ("tuned, probe", "base, probe"),
}
"""Gap -> (arm, less arm)."""


@method(
    "representation-gap",
    group="representation",
    question="Did tuning put the answer into the states, or only teach the model to say what they held?",
    papers=("TART: A plug-and-play Transformer module for task-agnostic reasoning",),
    needs=Needs(columns=("answer",)),
    cost="three scored passes, a recording of both models, and probes of every layer",
    example="--shots 8",
)
def representation_gap(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    shots: int = 8,
    layers: Any = None,
    kind: Kind = "linear",
    metric: Measure = "accuracy",
    folds: int = 5,
    ridge: float = 1.0,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Probe ceiling, in-context accuracy and tuned accuracy on one classification task (Bhatia et al. 2023, TART).

    The distance from the base's in-context accuracy to the tuned model's accuracy is split at the probe on the base's
    states (held out, layer chosen on the training folds): what the probe lacks of the tuned model was not in the states
    (representation gap), what in-context learning lacks of the probe was there and not read out (read-out gap, TART's
    reasoning gap). Controls: a probe on shuffled labels, and examples with exchanged answers.

    Args:
        pair: Base and tuned model.
        prompts: Rows whose answers are a few classes.
        shots: Examples in front of each prompt of the in-context arm.
        layers: Layers that are probed; by default all.
        kind: linear, or mlp.
        metric: How answers are scored.
        folds: Folds of the probes.
        ridge: Strength of the probes' L2 penalty.
        max_new_tokens: Length of a generated answer.
        seed: Of examples, folds and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is the arm or the gap.

    Raises:
        UserError: Answers of one class, or too few rows of one.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    y, _ = classes_of(column_of(rows, "answer"))
    dealt = dealt_folds(folds, rows.clusters, y, seed)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    with counted(pair.base, pair.tuned) as passes:
        shown = with_demonstrations(rows, rows, shots, seed)
        mixed = with_demonstrations(rows, rows, shots, seed, answers=exchanged_answers(rows, seed))
        arms = {
            "base, zero-shot": answer_scores(pair.base, rows, metric, **options),
            "base, in context": answer_scores(pair.base, shown, metric, **options),
            "tuned, zero-shot": answer_scores(pair.tuned, rows, metric, **options),
        }
        exchanged = answer_scores(pair.base, mixed, metric, **options)
        recording = record(pair, rows, "resid_post", layers=layers, batch_size=batch_size)
    controls: dict[str, Any] = {"base, in context": exchanged}
    wrong = shuffled_labels(y, 1, seed + 1, rows.clusters)[0]
    for role in ("base", "tuned"):
        states = [recording[role][site][:].float().numpy() for site in recording.sites]
        arms[f"{role}, probe"] = nested_right(states, y, dealt, kind, ridge, seed)
        controls[f"{role}, probe"] = nested_right(states, wrong, dealt, kind, ridge, seed)
    table = table_of(gap_lines(arms, controls, float(np.bincount(y).max() / len(y)), rows.clusters, seed))
    return EffectPanel(
        table=table,
        control="probes on shuffled labels, examples with exchanged answers; else the share of the largest class",
        provenance=Provenance.of("representation_gap", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame(arms),
        measured="accuracy",
        heading="Representation and read-out",
        verdict=_said(table),
    )  # fmt: skip


def _said(table: pd.DataFrame) -> str:
    """Every gap with its interval, beside its control."""
    lines = [table[table["group"] == name].iloc[0] for name in GAPS]
    return "; ".join(
        f"{row['group']} ({' less '.join(GAPS[row['group']])}) {row['score']:+.2f} [{row['low']:.2f}, "
        f"{row['high']:.2f}], control {row['control']:+.2f}"
        for row in lines
    )


def nested_right(
    states: Sequence[np.ndarray], y: np.ndarray, dealt: np.ndarray, kind: Kind, ridge: float, seed: int
) -> np.ndarray:
    """[row] whether a held-out probe tells each row; the layer is chosen for each fold on the other folds alone."""
    import torch

    cells = torch.stack([torch.from_numpy(state) for state in states])
    right = held_out_right(cells, y[None], dealt[None], kind=kind, ridge=ridge, seed=seed)[:, 0]
    chosen_right = np.zeros(len(y))
    for fold in np.unique(dealt):
        inside = torch.from_numpy(dealt != fold)
        inner = _inner_folds(dealt[dealt != fold])
        inner_right = held_out_right(
            cells[:, inside], y[None][:, dealt != fold], inner[None], kind=kind, ridge=ridge, seed=seed
        )[:, 0]
        chosen_right[dealt == fold] = right[int(inner_right.mean(1).argmax())][dealt == fold]
    return chosen_right


def _inner_folds(dealt: np.ndarray) -> np.ndarray:
    """The remaining folds as two, where there are more."""
    numbers = np.unique(dealt, return_inverse=True)[1]
    return numbers % 2 if numbers.max() > 1 else numbers


def gap_lines(
    arms: dict[str, np.ndarray], controls: dict[str, Any], largest: float, clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Lines of the arms and of the gaps between them."""
    lines = [
        scored_line(name, name.split(",")[0], arms[name], controls.get(name, largest), clusters, seed) for name in ARMS
    ]
    for name, (first, second) in GAPS.items():
        both = first.split(",")[1] == second.split(",")[1]  # the same arm of both models
        line = scored_line(name, CHANGE if both else "gap", arms[first] - arms[second], 0.0, clusters, seed)
        beside = [np.mean(controls.get(side, largest)) for side in (first, second)]
        lines.append({**line, "control": float(beside[0] - beside[1])})
    return lines
