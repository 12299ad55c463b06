"""Interventions that change weights, each with the same weights set by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

import interventions as iv
from tests.interventions.weight_cases import (
    RANK,
    adapter_model_of,
    adapter_scaled,
    grafted,
    half,
    layers_scaled,
    tuned_values,
)
from tests.interventions.zoo import Case, model_of
from tests.tiny import FAMILIES
from workbench.models.adapted import AdaptedModel

_RANKS = [1.0, 0.0, 0.5, -1.0]


def _dense_name(m: AdaptedModel) -> str:
    """The attention output projection, as the adapter's paths end."""
    return m.hub.family.output.split(".")[-1]


def _on_weights(
    make: Callable[[AdaptedModel], Any],
    dense: Callable[[AdaptedModel], AbstractContextManager[None]],
    model: Callable[[str], AdaptedModel] = model_of,
) -> Case:
    return Case(lambda m, rows: make(m), dense, FAMILIES, model, on_weights=True, uncontrolled=CHANGED)


CHANGED = "It changes weights; random masks and null adapters are the controls of the probes that choose them."
INVARIANT_CASES: dict[str, Case] = {
    "graft": _on_weights(lambda m: iv.Graft(half(m.name), {n: tuned_values(m.name)[n] for n in half(m.name)}), grafted),
    "layer_scale": _on_weights(
        lambda m: iv.LayerScale(0.4, 0.8, tuned_values(m.name)), lambda m: layers_scaled(m, 0.4, 0.8)
    ),
    "layer_scale_adapter": _on_weights(
        lambda m: iv.LayerScale(0.4, 0.8),
        lambda m: adapter_scaled(m, lambda path, layer: 0.4 + 0.4 * layer, torch.ones(RANK)),
        adapter_model_of,
    ),
    "adapter_scale": _on_weights(
        lambda m: iv.AdapterScale(0.7, layers={0: 0.0, 2: 2.0}, modules={_dense_name(m): 0.5}, ranks=_RANKS),
        lambda m: adapter_scaled(
            m,
            lambda path, layer: 0.7 * {0: 0.0, 1: 1.0, 2: 2.0}[layer] * (0.5 if path.endswith(_dense_name(m)) else 1.0),
            torch.tensor(_RANKS),
        ),
        adapter_model_of,
    ),
}
