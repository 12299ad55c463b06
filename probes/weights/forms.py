"""change_forms: how much of an update each simple form explains: rescaled rows or columns, switched-off entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.weights.changed_matrices import ChangedMatrix, changed_matrices
from probes.weights.sources import open_weights
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.progress import Progress
from workbench.typing import Float, Tensor

FORMS = ("rows", "columns", "groups", "mask", "rank_one")


@dataclass(frozen=True, kw_only=True)
class ChangeForms(ProbeResult):
    """One row per changed matrix.

    Of the squared norm of the update, the share that each form explains: ``rows``: every output row times a number
    (IA3 on keys, values; quantisation scales per row, PEQA); ``columns``: every input column times a number (IA3 before
    the MLP's output); ``groups``: every group of ``group`` columns in every row times a number (grouped quantisation);
    ``mask``: entries switched off (tuned exactly 0: mask tuning), ``rank_one``: the best rank-1 change.
    ``score`` is the best of them and ``form`` its name; ``low``, ``high`` equal it; ``control``: the mean of the same
    form's share under random signs, ``q`` of a larger one. ``density``: share of entries that moved; ``off``: share of
    entries that were not 0 in the base and are 0 in the tuned model. ``gain``: the mean of the best form's factors.
    """

    group: int

    title: ClassVar[str] = "Forms of the change"
    unit: ClassVar[str] = "share of the update that its best form explains"

    def summary(self) -> str:
        means = {form: float(self.table[form].mean()) for form in FORMS}
        said = ", ".join(f"{form.replace('_', ' ')} {value:.2f}" for form, value in means.items())
        return (
            f"{len(self.table)} matrices; explained by each form: {said}; {self.table['off'].mean():.2%} of the "
            f"entries were switched off; random signs {self.table['control'].mean():.2f}. Control: {self.control}."
        )


@method(
    "change-forms",
    group="weights",
    question="Is the change a rescaling of rows, columns or groups, a mask over the weights, or none of them?",
    papers=(
        "Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer Quantization",
        "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models",
    ),
    needs=Needs(folders=True),
    cost="one reading of both models, and as many fits as there are draws",
)
def change_forms(
    base: Any, tuned: Any = None, *, group: int = 32, draws: int = 19, seed: int = 0, progress: Progress | None = None
) -> ChangeForms:
    """Fit each form to the update of every matrix inside the layers, by least squares.

    Args:
        base: A pair, or the base.
        tuned: The tuned model or adapter, where ``base`` is no pair.
        group: Columns per group.
        draws: Updates under random signs; 19 is the fewest for p = 0.05.
        seed: Of the signs.

    Raises:
        UserError: Nothing differs inside the layers.
    """
    opened = open_weights(base, tuned)
    rows = [_row(matrix, group, draws, seed + matrix.number) for matrix in changed_matrices(opened, "forms", progress)]
    if not rows:
        raise UserError("The two models do not differ in any matrix inside the layers: there is no change to describe.")
    return ChangeForms(
        table=with_q(rows, keep_p=False),
        control=f"the same update under random signs, entry by entry ({draws} draws)",
        provenance=Provenance.of("change_forms", opened.identities(), seed=seed),
        group=group,
    )


@torch.no_grad()
def _row(matrix: ChangedMatrix, group: int, draws: int, seed: int) -> dict[str, Any]:
    weight, change = matrix.weight, matrix.change
    shares = explained(weight, change, group)
    form = max(shares, key=shares.__getitem__)
    generator = torch.Generator().manual_seed(seed)
    signs = [torch.randint(0, 2, change.shape, generator=generator) * 2 - 1 for _ in range(draws)]
    chance = [explained(weight, change * sign, group)[form] for sign in signs]
    best, off = shares[form], (weight != 0) & (weight + change == 0)
    gains = 1 + _gain(weight, change, form, group)
    return {
        "layer": matrix.place.layer, "module": matrix.place.module, "score": best, "low": best, "high": best,
        "control": float(np.mean(chance)) if chance else np.nan,
        "p": (1 + sum(value >= best for value in chance)) / (draws + 1), "form": form, **shares,
        "density": float((change != 0).float().mean()), "off": float(off.float().mean()),
        "gain": float(gains.mean()),
    }  # fmt: skip


def explained(weight: Float[Tensor, "out into"], change: Float[Tensor, "out into"], group: int) -> dict[str, float]:
    """Form -> share of ||change||^2 that its least-squares fit explains."""
    total = float(change.square().sum())
    off = torch.where((weight != 0) & (weight + change == 0), change, torch.zeros_like(change))
    top = float(torch.linalg.matrix_norm(change, 2)) ** 2 if min(change.shape) <= 64 else _top_squared(change)
    squares = {
        **{form: _fitted(weight, change, form, group) for form in ("rows", "columns", "groups")},
        "mask": float(off.square().sum()),
        "rank_one": top,
    }
    return {form: min(1.0, value / total) for form, value in squares.items()}


def _top_squared(change: Tensor) -> float:
    """The largest squared singular value, by power iteration."""
    vector = torch.ones(change.shape[1]) / change.shape[1] ** 0.5
    for _ in range(30):
        vector = torch.nn.functional.normalize(change.T @ (change @ vector), dim=0)
    return float((change @ vector).square().sum())


def _fitted(weight: Tensor, change: Tensor, form: str, group: int) -> float:
    return float((_gain(weight, change, form, group) * weight).square().sum())


def _gain(weight: Tensor, change: Tensor, form: str, group: int) -> Tensor:
    """The factors g of the best change = g * weight, broadcast to the weight; zeros for other forms."""
    if form in ("mask", "rank_one"):
        return torch.zeros(1)
    product, square = weight * change, weight.square()
    if form == "groups":
        width = weight.shape[1]
        pad = (-width) % group
        parts = [
            torch.nn.functional.pad(values, (0, pad)).view(len(values), -1, group).sum(-1)
            for values in (product, square)
        ]
        return (parts[0] / parts[1].clamp_min(1e-30)).repeat_interleave(group, 1)[:, :width]
    axis = 1 if form == "rows" else 0
    return product.sum(axis, keepdim=True) / square.sum(axis, keepdim=True).clamp_min(1e-30)
