"""Churn of sparse updates over a series: which entries moved most, step by step (SpIEL grows and drops them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy.stats import hypergeom

from interventions.weightspace.selection_scores import top_mask
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.series.members import difference, members_of
from probes.weights.naming import place_of
from probes.weights.sources import Opened
from workbench.figures.weights import cell_map
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.stats.shares import share_interval
from workbench.typing import Tensor


@dataclass(frozen=True, kw_only=True)
class MaskChurn(ProbeResult):
    """One row per step and layer: of the entries that had moved most at the step before, the ``score`` share that
    still has, beside chance (``control``), ``q`` of sharing as many (hypergeometric). ``step`` names the later member.
    """

    title: ClassVar[str] = "Entries that stay among the most moved"
    unit: ClassVar[str] = "share of the step before"

    def figure(self) -> go.Figure:
        """Layer by step."""
        return cell_map(self.table.assign(module=self.table["step"]), "module", title=self.title, unit=self.unit)

    def summary(self) -> str:
        by_step = self.table.groupby("step", sort=False)["score"].mean()
        said = ", ".join(f"{name} {value:.2f}" for name, value in by_step.items())
        return f"Kept from the step before: {said}; by chance {self.table['control'].mean():.3f} ({self.control})"


@method(
    "mask-churn",
    group="weights",
    question="Do the entries that moved most stay the same over a series of checkpoints?",
    papers=("Scaling Sparse Fine-Tuning to Large Language Models",),
    needs=Needs(folders=True),
    cost="one reading of each member's weights; no forward pass",
    example="--checkpoints ./adapter",
)
def mask_churn(
    base: Any,
    tuned: Any = None,
    *,
    checkpoints: Sequence[str] = (),
    share: Annotated[float, Within(1e-6, 0.5)] = 0.01,
    progress: Progress | None = None,
) -> MaskChurn:
    """Follow the most moved ``share`` of every tensor from member to member.

    Args:
        base: The base, a pair, or a series from :func:`workbench.load_series`.
        tuned: The final model, the last member.
        checkpoints: The members before it: folders, hub ids, or a Trainer's output folder.
        share: Share of each tensor's entries that counts as most moved.

    Raises:
        UserError: Fewer than two members, or members of another architecture.
    """
    members = members_of(base, tuned, checkpoints, None)
    watch = progress or Silent()
    watch.start("members", len(members.models))
    before: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    models: dict[str, Any] = {}
    for number, (name, opened) in tracked(enumerate(members.opened()), watch):
        now = _most_moved(opened, share)
        rows += _kept(name, before, now) if number else []
        before = now
        sides = opened.identities()
        models |= {"base": sides["base"], name: sides["tuned"]}
    watch.finish()
    columns = ["step", "layer", "score", "low", "high", "control", "p", "entries"]
    table = pd.DataFrame(rows, columns=columns)
    return MaskChurn(
        table=with_q(table, keep_p=False),
        control="as many entries drawn at random in every tensor",
        provenance=Provenance.of("mask_churn", models),
    )


def _most_moved(opened: Opened, share: float) -> dict[str, Tensor]:
    """Packed masks of the tensors inside the layers that moved."""
    masks = {}
    for name in opened.base:
        if place_of(name).layer is None or not (name in opened.factors or name in opened.tuned):
            continue
        change = difference(opened, name).abs()
        if change.is_floating_point() and bool((change > 0).any()):
            masks[name] = top_mask(change, share)
    return masks


def _kept(step: str, before: dict[str, Tensor], now: dict[str, Tensor]) -> list[dict[str, Any]]:
    sums: dict[int, torch.Tensor] = {}
    for name in before.keys() & now.keys():
        layer = place_of(name).layer
        assert layer is not None
        earlier, other = before[name], now[name]
        counts = torch.tensor([int((earlier & other).sum()), int(earlier.sum()), int(other.sum()), earlier.numel()])
        sums[layer] = sums.get(layer, torch.zeros(4, dtype=torch.long)) + counts
    rows = []
    for layer, total in sorted(sums.items()):
        shared, first, second, size = total.tolist()
        held = share_interval(np.repeat([True, False], [shared, first - shared]))
        rows.append({
            "step": step, "layer": layer, "score": shared / first, "low": held.low, "high": held.high,
            "control": second / size, "p": float(hypergeom.sf(shared - 1, size, first, second)), "entries": first,
        })  # fmt: skip
    return rows
