"""The difference of two models, scaled by depth (LiNeS, Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from interventions.base import Intervention
from interventions.strength import Number, Strength
from interventions.weightspace.adapter_scale import AdapterScale
from interventions.weightspace.graft import part_way
from interventions.weightspace.swapping import (
    base_parameters,
    check_same_shape,
    find_parameter,
    layer_of,
    one_strength,
    swapped,
)
from interventions.weightspace.tuned_values import changed_names, tuned_values
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor


@method(
    "layer-scale",
    group="weights",
    question="How much of the tuning does each layer keep?",
    kind="intervention",
    papers=("LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",),
)
@dataclass(frozen=True, eq=False, repr=False)
class LayerScale(Intervention):
    """theta_0 + (a + b * l / (L - 1)) * (theta_tuned - theta_0) at layer l of L; parameters outside the layers times a.

    With ``tuned`` (parameter name -> tuned tensor) it acts on the base model; without, on a model that carries an
    adapter, whose change is scaled. LiNeS for one task has b = 1 - a; a = 1, b = 0 is the tuned model bit for bit.
    """

    a: float
    b: float
    tuned: Mapping[str, Tensor] = field(default_factory=dict)
    strength: Strength = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", one_strength(self.strength))

    @classmethod
    def from_pair(cls, pair: Any, a: float, b: float) -> LayerScale:
        """For ``pair.base`` where both models are held, for ``pair.tuned`` where an adapter is."""
        if pair.adapter is not None:
            return cls(a, b)
        return cls(a, b, tuned_values(pair, changed_names(pair)))

    def at(self, layer: int, n_layers: int) -> float:
        """The factor of a layer."""
        return self.a + self.b * (layer / (n_layers - 1) if n_layers > 1 else 0.0)

    def validate(self, model: AdaptedModel) -> None:
        """The tuned tensors must fit, or without them the model must carry an adapter."""
        if not self.tuned:
            self._on_adapter(model).validate(model)
        parameters = base_parameters(model.hf)
        for name, value in self.tuned.items():
            check_same_shape(name, value, find_parameter(parameters, name))

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """The scaled difference is in the weights inside; the original tensors come back after."""
        if not self.tuned:
            with self._on_adapter(model).entered(model):
                yield
            return
        with model.active(), model.hub.guarded(), swapped(self._weights(model)):
            yield

    @property
    def _share(self) -> float:
        return one_strength(self.strength)

    def scaled(self, factor: Number) -> LayerScale:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=self._share * factor)

    @torch.no_grad()
    def _weights(self, model: AdaptedModel) -> dict[torch.nn.Parameter, Tensor]:
        parameters, new = base_parameters(model.hf), {}
        for name, value in self.tuned.items():
            parameter, share = find_parameter(parameters, name), self._share * self._factor(name, model)
            new[parameter] = part_way(parameter.data, value.to(parameter), share)
        return new

    def _factor(self, name: str, model: AdaptedModel) -> float:
        layer = layer_of(name, model)
        return self.a if layer is None else self.at(layer, model.n_layers)

    def _on_adapter(self, model: AdaptedModel) -> AdapterScale:
        factors = {layer: self.at(layer, model.n_layers) for layer in range(model.n_layers)}
        return AdapterScale(outside=self.a, layers=factors, strength=self._share)
