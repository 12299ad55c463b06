"""Whether tuning moves activations as examples in the prompt do, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from probes.effects.panel import scored_line
from probes.effects.rewriting import with_demonstrations
from probes.replay import counted
from probes.representation.separability import CellShifts
from probes.resampling import units_of
from probes.results import Provenance
from probes.retention.many_shot import exchanged_answers
from probes.scored import with_q
from workbench.argument_checks import check_pair
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.typing import Float, Tensor


@method(
    "in-context-activations",
    group="representation",
    question="Does tuning move the activations as examples in the prompt would?",
    papers=("IA2: Alignment with ICL Activations Improves Supervised Fine-Tuning",),
    needs=Needs(columns=("answer",)),
    cost="two recordings of the base and one of the tuned model",
    example="--shots 4 --sites attn_out",
)
def in_context_activations(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    shots: int = 4,
    sites: Sequence[str] = ("attn_out", "resid_post"),
    layers: Any = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> CellShifts:
    """Cosine, at the last token, of what tuning adds (tuned - base) and what examples add (base behind them - base).

    IA2 (Mishra et al. 2025) finds that plain fine-tuning reaches the same answers by other activations, and trains on
    this similarity. The part that all examples share, whatever they answer, is measured by the control: the same
    examples with exchanged answers. ``explained`` is the share of tuning's shift along the examples' shift.

    Args:
        pair: Base and tuned model.
        prompts: Rows with answers, the pool of the examples as well.
        shots: Examples in front of each prompt.
        sites: Which activations are compared.
        layers: Layers: indices or fractions of depth; by default all.
        seed: Of examples and intervals.

    Returns:
        A :class:`CellShifts`; score is the mean cosine over prompts.

    Raises:
        UserError: No examples were asked for, or there are too few rows.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if shots < 1:
        raise UserError("Without examples there is nothing that they add: give shots of 1 or more.")
    shown = with_demonstrations(rows, rows, shots, seed)
    mixed = with_demonstrations(rows, rows, shots, seed, answers=exchanged_answers(rows, seed))
    options: dict[str, Any] = {"layers": layers, "batch_size": batch_size, "progress": progress}
    with counted(pair.base, pair.tuned) as passes:
        plain = record(pair, rows, list(sites), **options)
        behind, control = (record(pair.base, own, list(sites), **options) for own in (shown, mixed))
    lines = []
    for name in plain.sites:
        base = _flat(plain["base"][name][:])
        tuned = _flat(plain["tuned"][name][:]) - base
        true, exchanged = (_flat(states["base"][name][:]) - base for states in (behind, control))
        site = Site.parse(name)
        lines.append({
            "site": site.kind, "layer": site.layer, **similarity_line(tuned, true, exchanged, rows.clusters, seed),
        })  # fmt: skip
    return CellShifts(
        table=with_q(lines),
        control="the same examples with exchanged answers",
        provenance=Provenance.of("in_context_activations", pair, rows, seed=seed, forward_passes=passes.forward),
        heading="Tuning and examples",
        measured="cosine of both shifts",
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def _flat(values: Tensor) -> Float[Tensor, "prompt d"]:
    return values.float().flatten(1)


def similarity_line(
    tuned: Float[Tensor, "prompt d"], shown: Float[Tensor, "prompt d"], exchanged: Float[Tensor, "prompt d"],
    clusters: np.ndarray, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Mean cosine of shifts, beside that of the exchanged examples; 0 where nothing moved."""
    cosine, control = (
        torch.nn.functional.cosine_similarity(tuned, shift, dim=-1).double().numpy() for shift in (shown, exchanged)
    )
    moved = tuned.norm(dim=-1).numpy() > 1e-9
    cosine, control = np.where(moved, cosine, 0.0), np.where(moved, control, 0.0)
    line = scored_line("", "", cosine, control, clusters, seed)
    along = (tuned * torch.nn.functional.normalize(shown, dim=-1)).sum(-1).square().sum()
    explained = float(along / tuned.square().sum().clamp_min(1e-30))
    shared_columns = {name: line[name] for name in ("score", "low", "high", "control", "p", "n")}
    return {**shared_columns, "explained": explained}
