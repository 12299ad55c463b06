"""What a router over adapters gives each token, module by module, while it is at work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import interventions as iv
from workbench.engine.families import submodule
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor


def adapter_weights(
    model: AdaptedModel, router: iv.AdapterRouting, ids: Tensor | list[int]
) -> dict[str, Float[np.ndarray, "*row pos adapter"]]:
    """Module -> the weights at each token of ``ids`` ([pos], or [row, pos] without padding), with the router at work.

    Example:
        ``adapter_weights(base, router, [3, 4, 5])["model.layers.0.mlp.down_proj"].mean(0)``
    """
    weights_by_module: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def read(_module: Any, args: Any) -> None:
            weights_by_module[path] = router.by_adapter(path, args[0].detach()).float()

        return read

    tokens = torch.as_tensor(ids)
    handles = [submodule(model.inner, path).register_forward_pre_hook(keep(path)) for path in router.down]
    try:
        with iv.Recipe([router]).applied(model):
            model.forward(tokens if tokens.ndim > 1 else tokens[None], logits=None)
    finally:
        for handle in handles:
            handle.remove()
    shape = tokens.shape
    return {path: weights.reshape(*shape, -1).cpu().numpy() for path, weights in weights_by_module.items()}
