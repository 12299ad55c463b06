"""Every selection judged at once: only this part of the update, all but this part, and random parts of its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from interventions.weightspace.graft import Graft
from interventions.weightspace.selection_scores import SCORES, half_of_tensors, top_mask
from probes.call_settings import call_settings
from probes.grafting.blend import Blender
from probes.grafting.cutting import pair_region
from probes.grafting.tasks import Task, grafted_outcome
from probes.grafting.units import complement, entries_in, random_like
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.selection_scores.evidence import Gathered, gather
from probes.series.answers import Answers
from probes.weights.naming import place_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError, unknown_name
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Tensor

HALF_RESET = "half_reset"


@dataclass(frozen=True, kw_only=True)
class SelectionTrial(ProbeResult):
    """What each selection of weights carries.

    ``table``: ``module`` is the selection; ``score`` the share of held-out prompts answered right with only the
    selected entries of the update on the base, ``control`` the mean of random entries, as many in every tensor,
    ``q`` of the difference; ``rolled_back`` the share with all of the update but the selection, beside
    ``rolled_back_control``; ``kept`` and ``rolled_back_kept`` the same shares on the prompts of ``retain`` (NaN
    without); ``iou`` with the most moved entries, beside ``iou_chance``; ``hit_rate``: the selection's part of all
    squared change, beside ``share``, which is what chance would hit.
    ``masks``: selection -> tensor -> flat coordinates, for :meth:`intervention`.
    ``overlaps``: IoU of every two selections and what chance gives.
    """

    masks: dict[str, Tensor]
    overlaps: pd.DataFrame
    base: float
    tuned: float

    title: ClassVar[str] = "Selections of weights"
    unit: ClassVar[str] = "share right with only the selection"

    def mask(self, selection: str) -> dict[str, Tensor]:
        """Tensor -> flat coordinates of a selection."""
        start = f"{selection}/"
        masks = {name.removeprefix(start): mask for name, mask in self.masks.items() if name.startswith(start)}
        if not masks:
            raise unknown_name("selection", selection, self.table["module"])
        return masks

    def intervention(self, pair: Any, selection: str) -> Graft:
        """Only that part of the update, as an intervention on ``pair.base``."""
        return Graft.from_pair(pair, self.mask(selection))

    def summary(self) -> str:
        best = self.table.sort_values("score", kind="stable").iloc[-1]
        return (
            f"{best['module']} ({best['share']:.1%} of the changed weights) carries most: {best['score']:.2f} "
            f"[{best['low']:.2f}, {best['high']:.2f}] of {int(best['n'])} prompts, random {best['control']:.2f}; base "
            f"{self.base:.2f}, tuned {self.tuned:.2f}. Control: {self.control}."
        )


@method(
    "selections",
    group="weights",
    question="Which weights would each selection method pick, and does that part of the update carry the skill?",
    papers=(
        "Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation",
        "Learn from Downstream and Be Yourself in Multimodal Large Language Model Fine-Tuning",
        "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning",
        "TR-PTS: Task-Relevant Parameter and Token Selection for Efficient Tuning",
        "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation",
        "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised "
        "Fine-Tuning",
        "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels",
        "HFT: Half Fine-Tuning for Large Language Models",
    ),
    needs=Needs(columns=("answer",)),
    cost="one forward and backward pass, then 2 + 2 x draws forward passes per selection",
)
def selection_trial(
    pair: Any,
    prompts: Any,
    *,
    scores: Sequence[str] = (
        "change",
        "first_order",
        "gradient",
        "small_weights",
        "large_weights",
        "reduced_magnitude",
    ),
    share: Annotated[float, Within(1e-6, 0.9)] = 0.05,
    retain: Annotated[Any, As("prompts")] = None,
    draws: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> SelectionTrial:
    """Select ``share`` of every changed tensor by each score, and test the selections on held-out prompts.

    Half of the prompts (whole groups) give the gradients, the other half judge. "half_reset" selects half of the
    tensors of each kind in a layer instead of a share of each.

    Args:
        pair: Base and tuned model.
        prompts: Rows with an answer, of the task that was tuned for.
        scores: Names of :data:`interventions.weightspace.selection_scores.SCORES`, or half_reset.
        share: Share of each tensor's entries that is selected.
        retain: Prompts with answers of what the base could do, to measure forgetting.
        draws: Random selections of the same size per tensor.
        seed: Of the split and the random selections.

    Raises:
        UserError: An unknown score, nothing that differs, prompts without answers or too few.
    """
    check_pair(pair)
    for name in scores:
        if name not in SCORES and name != HALF_RESET:
            raise unknown_name("score", name, [*SCORES, HALF_RESET])
    if draws < 1:
        raise UserError("The control needs at least one random selection: give draws of 1 or more.")
    rows = Prompts.of(prompts)
    answers = Answers.of(pair.base, rows, batch_size)
    fit, report = answers.halves(seed)
    blender = Blender(pair.base.hf, pair_region(pair, "entries"))
    gathered = gather(pair.base, blender.region, fit)
    retained_task = None if retain is None else Answers.of(pair.base, retain, batch_size).task()
    judge = _Judge(blender, report, retained_task, draws, seed)
    watch = progress or Silent()
    watch.start("selections", len(scores))
    table, masks = [], {}
    moved = _select("change", gathered, share, seed)
    for name in tracked(scores, watch):
        masks[name] = _select(name, gathered, share, seed)
        table.append({"module": name, **judge.row(masks[name]), **_agreement(gathered, masks[name], moved)})
    watch.finish()
    whole, nothing = judge.ends()
    return SelectionTrial(
        table=with_q(table, keep_p=False),
        control=f"random entries of the update, as many in every tensor ({draws} draws)",
        provenance=Provenance.of(
            "selection_trial", pair, rows, seed=seed, forward_passes=judge.passes + gathered.passes,
            backward_passes=gathered.passes,
            settings=call_settings(None, retain=None if retain is None else Prompts.of(retain)),
        ),
        masks={
            f"{name}/{tensor}": part.reshape(-1).nonzero()[:, 0]
            for name, mask in masks.items() for tensor, part in mask.items() if bool(part.any())
        },
        overlaps=_overlaps(masks),
        base=nothing,
        tuned=whole,
    )  # fmt: skip


def _select(name: str, gathered: Gathered, share: float, seed: int) -> dict[str, Tensor]:
    parts = gathered.region.parts
    if name == HALF_RESET:
        categories = [f"{place_of(tensor).layer}/{_category(tensor)}" for tensor in parts]
        half = half_of_tensors(list(parts), categories, seed)
        return {tensor: torch.full(part.base.shape, tensor in half) for tensor, part in parts.items()}
    return {tensor: top_mask(SCORES[name](gathered.of(tensor)), share) for tensor in parts}


def _category(name: str) -> str:
    module = place_of(name).module
    return "norm" if "norm" in module or "ln_" in module else module.split(".")[0]


def _agreement(gathered: Gathered, mask: dict[str, Tensor], moved: dict[str, Tensor]) -> dict[str, float]:
    """How far the selection agrees with where the update really is."""
    squares = hit = 0.0
    for name, part in gathered.region.parts.items():
        movement = part.movement().double().cpu()
        squares += float(movement.sum())
        hit += float(movement[mask[name]].sum())
    shared, chance = _iou(mask, moved)
    return {"hit_rate": hit / squares if squares else 0.0, "iou": shared, "iou_chance": chance}


def _iou(first: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, float]:
    """Intersection over union, and what random masks with as many entries in every tensor give."""
    both = sum(int((first[name] & other[name]).sum()) for name in first)
    either = sum(int((first[name] | other[name]).sum()) for name in first)
    sizes = [(int(first[name].sum()), int(other[name].sum()), first[name].numel()) for name in first]
    expected = sum(a * b / n for a, b, n in sizes)
    union = sum(a + b for a, b, _ in sizes) - expected
    return (both / either if either else 0.0), (expected / union if union else 0.0)


def _overlaps(masks: dict[str, dict[str, Tensor]]) -> pd.DataFrame:
    names = list(masks)
    rows = []
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            shared, chance = _iou(masks[name], masks[other])
            rows.append({"first": name, "second": other, "iou": shared, "chance": chance})
    return pd.DataFrame(rows, columns=["first", "second", "iou", "chance"])


@dataclass
class _Judge:
    blender: Blender
    task: Task
    retain: Task | None
    draws: int
    seed: int
    passes: int = 0

    def right(self, mask: dict[str, Tensor], task: Task | None) -> np.ndarray:
        """Row by row, with the mask of the update on the base; a NaN without a task."""
        if task is None:
            return np.array([np.nan])
        self.passes += len(task.batches)
        return grafted_outcome(task, self.blender, mask).right.astype(float)

    def ends(self) -> tuple[float, float]:
        """Accuracy with all of the update inside the layers, and with none."""
        parts = self.blender.region.parts
        return tuple(  # type: ignore[return-value]
            float(self.right({name: torch.full(part.base.shape, on) for name, part in parts.items()}, self.task).mean())
            for on in (True, False)
        )

    def row(self, mask: dict[str, Tensor]) -> dict[str, float]:
        region, task = self.blender.region, self.task
        rest = complement(region, mask)
        only = self.right(mask, task)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [random_like(region, mask, generator) for _ in range(self.draws)]
        random = np.stack([self.right(draw, task) for draw in drawn])
        random_rest = np.stack([self.right(complement(region, draw), task) for draw in drawn])
        clusters = task.clusters if task.clusters is not None else np.arange(len(only))
        entries = entries_in(region, mask)
        return {
            **beside_control(only, random.mean(0), clusters, seed=self.seed, share=True),
            "rolled_back": float(self.right(rest, task).mean()),
            "rolled_back_control": float(random_rest.mean()),
            "kept": float(self.right(mask, self.retain).mean()),
            "rolled_back_kept": float(self.right(rest, self.retain).mean()),
            "share": entries / region.n_entries,
            "entries": entries,
            "n": len(only),
        }
