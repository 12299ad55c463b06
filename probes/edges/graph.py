"""The graph of a transformer: heads, MLPs and the embedding send; heads' q, k, v, MLPs and the logits receive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from probes.patches.runs import output_matrix
from workbench.engine.context import ForwardContext
from workbench.engine.families import submodule
from workbench.engine.ports import port
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Float, Tensor

QKV = ("q", "k", "v")
_ORDER = {"embed": -1, "q": 0, "k": 0, "v": 0, "head": 1, "mlp_in": 2, "mlp": 3, "logits": 4}


@dataclass(frozen=True)
class Node:
    """A sender (``embed``, ``head``, ``mlp``) or a receiver (``q``, ``k``, ``v``, ``mlp_in``, ``logits``)."""

    kind: str
    layer: int
    head: int = 0

    @property
    def label(self) -> str:
        """``L3H5``, ``L3H5.q``, ``L3 MLP``, ``embed`` or ``logits``."""
        if self.kind in ("embed", "logits"):
            return self.kind
        if self.kind in ("mlp", "mlp_in"):
            return f"L{self.layer} MLP"
        return f"L{self.layer}H{self.head}" + ("" if self.kind == "head" else f".{self.kind}")

    @property
    def order(self) -> tuple[int, int]:
        """When it is computed."""
        return self.layer, _ORDER[self.kind]


class Graph:
    """Senders, receivers and the modules between them, of a model whose blocks are norm, attention, norm, MLP in turn.

    Raises :class:`NotSupported` for models that compute attention and MLP side by side, normalise what a sublayer
    writes, or have layers without heads.
    """

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        family, self.geometry = model.hub.family, model.hub.geometry
        layers = range(model.n_layers)
        whole = len(self.geometry.attention_layers) == model.n_layers
        fits = family.resid_mid and family.attention_in and family.attention_in != family.attention and whole
        if (
            not fits
            or family.resid_mid == family.mlp
            or family.mlp_out != family.mlp
            or not (family.key and family.value)
        ):
            raise NotSupported(
                f"Edges need blocks of norm, attention with q, k and v, norm and MLP in turn, and "
                f"{model.inner.config.model_type} is built otherwise: patch heads and layers instead."
            )
        self._matrices: dict[tuple[int, str], Tensor] = {}
        self.out = {layer: output_matrix(model, layer) for layer in layers}
        self.senders = [Node("embed", -1)]
        self.receivers: list[Node] = []
        for layer in layers:
            self.senders += [Node("head", layer, head) for head in range(model.n_heads)]
            self.senders.append(Node("mlp", layer))
            for kind in QKV:
                self.receivers += [Node(kind, layer, head) for head in range(self.count(kind))]
            self.receivers.append(Node("mlp_in", layer))
        self.receivers.append(Node("logits", model.n_layers))

    def count(self, kind: str) -> int:
        """How many heads of q, k or v a layer has."""
        return self.geometry.n_heads if kind == "q" else self.geometry.n_kv_heads

    @cached_property
    def possible(self) -> Bool[np.ndarray, "sender receiver"]:
        """Which edges there are: from what is computed earlier to what is computed later."""
        return np.array([[sender.order < receiver.order for receiver in self.receivers] for sender in self.senders])

    def norm(self, layer: int, *, mlp: bool = False) -> Any:
        """The norm before attention, or before the MLP."""
        family = self.model.hub.family
        path = family.resid_mid if mlp else family.attention_in
        return submodule(self.model.inner, f"{family.layers}.{layer}.{path}")

    def projected(
        self, layer: int, kind: str, value: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos head d"]:
        """q, k or v of every head from a normed residual, with whatever adapter the projection carries."""
        site = Site(kind, layer)
        raw = self.model.hub.module(site).forward(value)
        made = port(self.model.inner, self.model.hub.family, self.geometry, site)
        assert made is not None
        heads: Tensor = made.get(raw, ForwardContext(len(raw), 0, raw.shape[1], raw.device, None, None))
        return heads

    def matrix(self, layer: int, kind: str) -> Float[Tensor, "d_model head d"]:
        """The linear part of :meth:`projected`, read once."""
        if (layer, kind) in self._matrices:
            return self._matrices[layer, kind]
        width = self.model.d_model
        with self.model.active(), torch.no_grad():
            units = torch.eye(width, dtype=self.model.dtype, device=self.model.device)[None]
            linear = self.projected(layer, kind, units) - self.projected(layer, kind, torch.zeros_like(units))
        self._matrices[layer, kind] = linear[0]
        return linear[0]
