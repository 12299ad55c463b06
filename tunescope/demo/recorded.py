"""Vectors read from a recording of base and tuned: differences of means, and where the models differ."""

from __future__ import annotations

from typing import Any

import torch

from workbench.recording.recording import Recording
from workbench.typing import Bool, Float, Tensor


def rows_at(recording: Recording, role: str, layer: int) -> Float[Tensor, "row d_model"]:
    """The residual stream after ``layer`` at every recorded row, in float32."""
    return torch.as_tensor(recording[role][f"blocks.{layer}.hook_resid_post"][:]).float()


def mean_difference(values: Float[Tensor, "row d_model"], first: Bool[Tensor, " row"]) -> Float[Tensor, " d_model"]:
    """Mean of the rows in ``first`` minus the mean of the others."""
    return values[first].mean(0) - values[~first].mean(0)


def marked(rows: list[dict[str, Any]], column: str, value: str) -> Bool[Tensor, " row"]:
    """Which rows have ``value`` in ``column``."""
    return torch.tensor([row[column] == value for row in rows])
