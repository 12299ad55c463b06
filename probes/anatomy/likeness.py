"""LoRA's two factors: what stayed near the start, and what is the task's, by likeness and not by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import plotly.graph_objects as go
import torch

from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.series.members import members_of
from probes.weights.naming import place_of
from probes.weights.sources import Factors, open_weights
from workbench.errors import UserError
from workbench.figures.weights import cell_map
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.stats.bootstrap import mean_interval
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class LoraLikeness(ProbeResult):
    """One row per module and factor (``factor``: A or B).

    ``score``: mean squared canonical correlation of the factor's span over every two adapters (1: one span, control:
    random spans), ``low``, ``high`` over pairs of adapters; ``to_initial``: the same with the adapter at the start,
    ``bit_equal``: whether the factor is the start's bit for bit (NaN without one). ``q``: of a likeness above random
    spans.
    """

    title: ClassVar[str] = "Likeness of LoRA factors"
    unit: ClassVar[str] = "mean squared canonical correlation over adapters"

    def figure(self) -> go.Figure:
        """Likeness by layer, module and factor."""
        named = self.table.assign(module=self.table["module"] + " " + self.table["factor"])
        return cell_map(named, "module", title=self.title, unit=self.unit)

    def summary(self) -> str:
        means = self.table.groupby("factor")[["score", "control", "to_initial"]].mean()
        said = [
            f"{factor}: {row['score']:.3f} over adapters (random {row['control']:.3f})"
            + ("" if np.isnan(row["to_initial"]) else f", {row['to_initial']:.3f} to the start")
            for factor, row in means.iterrows()
        ]
        return f"{'; '.join(said)}. Control: {self.control}."


@method(
    "lora-likeness",
    group="weights",
    question="Do LoRAs of several seeds share A or B, and did A move from its start?",
    papers=("Asymmetry in Low-Rank Adapters of Foundation Models",),
    needs=Needs(folders=True, adapter=True),
    cost="one reading of the adapters",
    example="--checkpoints ./adapter",
)
def lora_likeness(
    base: Any,
    tuned: Any = None,
    *,
    checkpoints: Sequence[str] = (),
    initial: str | None = None,
    draws: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> LoraLikeness:
    """Compare the spans of A and of B over adapters of one base, and with the adapter before training.

    Spans do not depend on how scale is split between A and B, so a factor that only grew is like its start and one that
    turned is not.

    Args:
        base: A pair, a series or the base.
        tuned: One adapter.
        checkpoints: The other adapters (other seeds, or steps of training).
        initial: The adapter as it was before training.
        draws: Random spans of the same ranks and widths.
        seed: Of the random spans.

    Raises:
        UserError: Fewer than two adapters, what is no plain LoRA, or modules that they do not share.
    """
    members = members_of(base, tuned, checkpoints, None)
    read: list[Mapping[str, Factors]] = []
    models: dict[str, Any] = {}
    watch = progress or Silent()
    watch.start("adapters", len(members.models))
    for name, opened in tracked(members.opened(), watch):
        sides = opened.identities()
        read.append(_plain(name, opened.factors))
        models |= {"base": sides["base"], name: sides["tuned"]}
    watch.finish()
    start = None if initial is None else _plain(initial, open_weights(members.base, initial).factors)
    rows = []
    for number, module in enumerate(_shared(read, start)):
        held = [factors[module] for factors in read]
        begun = None if start is None else start[module]
        for factor in ("A", "B"):
            place = place_of(module)
            where = {"layer": place.layer, "module": place.module, "factor": factor}
            rows.append({**where, **_row(held, begun, factor, draws, seed + number)})
    return LoraLikeness(
        table=with_q(rows, keep_p=False),
        control=f"random spans of the same ranks in the same width ({draws} draws)",
        provenance=Provenance.of("lora_likeness", models, seed=seed),
    )  # fmt: skip


def span_likeness(span: Float[Tensor, "width first"], other: Float[Tensor, "width second"]) -> float:
    """The mean squared canonical correlation of two column spans: 1 for the same, min rank / width by chance."""
    first, second = (_basis(side) for side in (span, other))
    fewest = min(first.shape[1], second.shape[1])
    return float((first.T @ second).square().sum()) / fewest if fewest else 0.0


def _basis(columns: Float[Tensor, "width rank"]) -> Float[Tensor, "width used"]:
    """An orthonormal basis of the span, without directions that are zero (B at its start spans nothing)."""
    left, values, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    largest = float(values.max()) if len(values) else 0.0
    return left[:, values > largest * 1e-6] if largest > 0 else left[:, :0]


def _side(factors: Factors, which: str) -> Float[Tensor, "width rank"]:
    return factors.down.T.detach().cpu() if which == "A" else factors.up.detach().cpu()


def _row(held: list[Factors], begun: Factors | None, which: str, draws: int, seed: int) -> dict[str, float]:
    sides = [_side(factors, which) for factors in held]
    likeness = [span_likeness(side, other) for n, side in enumerate(sides) for other in sides[n + 1 :]]
    ranks = sides[0].shape[1], sides[1].shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        span_likeness(*(torch.randn(len(sides[0]), rank, generator=generator) for rank in ranks)) for _ in range(draws)
    ]
    whole = mean_interval(likeness, seed=seed) if len(likeness) > 1 else None
    mean = float(np.mean(likeness))
    row = {
        "score": mean, "low": mean if whole is None else whole.low, "high": mean if whole is None else whole.high,
        "control": float(np.mean(drawn)) if drawn else np.nan,
        "p": (1 + sum(draw >= mean for draw in drawn)) / (draws + 1), "to_initial": np.nan, "bit_equal": np.nan,
        "rank": ranks[0], "n": len(likeness),
    }  # fmt: skip
    if begun is not None:
        first = _side(begun, which)
        row["to_initial"] = float(np.mean([span_likeness(side, first) for side in sides]))
        row["bit_equal"] = float(all(torch.equal(side, first) for side in sides))
    return row


def _plain(name: str, factors: Mapping[str, Factors]) -> Mapping[str, Factors]:
    if not factors:
        raise UserError(f"{name} is no plain LoRA: give adapters whose A and B can be read.")
    return factors


def _shared(read: list[Mapping[str, Factors]], start: Mapping[str, Factors] | None) -> list[str]:
    every = [*read, *([] if start is None else [start])]
    shared = [module for module in every[0] if all(module in names for names in every)]
    if not shared:
        raise UserError("The adapters share no module: give LoRAs of one base with the same targets.")
    return shared
