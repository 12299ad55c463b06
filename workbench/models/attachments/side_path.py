"""A side path: bottleneck modules beside a frozen model, joined to one another from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from workbench.engine.hub import Hub
from workbench.errors import UserError
from workbench.models.attachments.attachment import Attachment, Handle, after_layer, check_width
from workbench.typing import Float, Tensor


class SidePath(Attachment):
    """s_k = gelu(h_k D_k) + s_{k-1} W_k beside the model, and h_k <- h_k + s_k U_k after each chosen layer.

    Without W the modules are scattered adapters, each on its own; with it they form one path (Ma et al. 2022). As s is
    a sum, what module i has a share in at layer k is exactly gelu(h_i D_i) W_{i+1} ... W_k U_k: see :meth:`shares`.
    U starts at 0, so that training starts at the base, and W at the identity.
    """

    kind = "side path"

    def __init__(
        self, d_model: int, layers: Sequence[int], width: int = 8, connected: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        if not layers or width < 1:
            raise UserError("A side path needs one layer or more, and a width of 1 or more.")
        self.d_model, self.layers, self.width, self.connected = d_model, tuple(sorted(set(layers))), width, connected
        count, generator = len(self.layers), torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(count, d_model, width, generator=generator) / d_model**0.5)
        self.up = nn.Parameter(torch.zeros(count, width, d_model))
        self.onward = nn.Parameter(torch.eye(width).repeat(count - 1 if connected else 0, 1, 1))
        self.read: list[Float[Tensor, "batch pos width"]] = []
        """What each module read in the pass that runs, or ran last."""
        self._state: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        return {"d_model": self.d_model, "layers": list(self.layers), "width": self.width, "connected": self.connected}

    def parts(self) -> dict[str, tuple[str, int | None]]:
        """Every module, and every link between two."""
        modules: dict[str, tuple[str, int | None]] = {f"L{layer}": ("down", k) for k, layer in enumerate(self.layers)}
        pairs = zip(self.layers, self.layers[1:], strict=False)
        links = {f"L{a}>L{b}": ("onward", k) for k, (a, b) in enumerate(pairs)} if self.connected else {}
        return modules | links

    def check(self, hub: Hub) -> None:
        check_width(hub, self.d_model, self.layers[-1] + 1)

    def installed(self, hub: Hub) -> list[Handle]:
        return [after_layer(hub, layer, partial(self._write, k)) for k, layer in enumerate(self.layers)]

    def shares(self, source: int, target: int, read: Float[Tensor, "*place width"]) -> Float[Tensor, "*place d_model"]:
        """What module ``source`` adds to the stream at module ``target`` (both by their order), from what it read."""
        carried = read
        for k in range(source, target):
            if not self.connected:
                return torch.zeros(*read.shape[:-1], self.d_model).to(read)
            carried = carried @ self.onward[k]
        return carried @ self.up[target]

    def _write(self, k: int, stream: Tensor) -> Tensor:
        read = nn.functional.gelu(stream.float() @ self.down[k])
        if k == 0:
            self.read, self._state = [], None
        self.read.append(read)
        joined = self.connected and self._state is not None
        self._state = read + self._state @ self.onward[k - 1] if joined and self._state is not None else read
        return stream + (self._state @ self.up[k]).to(stream)
