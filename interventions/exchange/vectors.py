"""Vectors made elsewhere, as offsets: steering-vectors objects and plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from interventions.offset import Offset
from interventions.recipe import Recipe
from interventions.strength import Strength
from workbench.engine.positions import PositionSpec, Where
from workbench.errors import NotSupported, UserError
from workbench.typing import Tensor

_SITES = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
"""What steering-vectors calls its layers -> our sites; the same tensors in every family without post-norms."""


def from_steering_vectors(vector: Any, *, strength: Strength = 1.0, positions: PositionSpec | Where = "all") -> Recipe:
    """A ``steering_vectors.SteeringVector`` as offsets; ``strength`` is its ``multiplier``.

    Raises :class:`NotSupported` for vectors at the input of a norm, which is no site of ours.
    """
    layers, kind = getattr(vector, "layer_activations", None), str(getattr(vector, "layer_type", ""))
    if not isinstance(layers, Mapping):
        raise UserError(f"{type(vector).__name__} is no SteeringVector: it has no layer_activations.")
    if kind not in _SITES:
        raise NotSupported(
            f"The steering vector acts at {kind}; Tunescope takes {', '.join(_SITES)} (a norm's output is no site)."
        )
    return from_tensors(layers, site=_SITES[kind], strength=strength, positions=positions)


def from_tensors(
    vectors: Mapping[int, Any],
    *,
    site: str = "resid_post",
    strength: Strength = 1.0,
    positions: PositionSpec | Where = "all",
) -> Recipe:
    """Layer -> vector [d_model] (tensor, array or list) as offsets at ``site``."""
    if not vectors:
        raise UserError("There are no vectors: map layers to vectors, as {8: tensor}.")
    offsets = [
        Offset(layer=int(layer), vector=_vector(vector), site=site, strength=strength, positions=positions)
        for layer, vector in sorted(vectors.items())
    ]
    return Recipe(offsets)


def _vector(values: Any) -> Tensor:
    vector = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(values)
    return vector.reshape(-1) if vector.ndim == 2 and 1 in vector.shape else vector
