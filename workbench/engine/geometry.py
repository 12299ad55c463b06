"""A model's sizes, read from its modules where a config could lie (head sizes), from the config elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from workbench.engine.families import Family, submodule
from workbench.engine.routing import core_router, find_router
from workbench.errors import NotSupported


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model. ``d_head`` is the width of one head of z: o_proj's input divided by the number of heads.

    A model without attention has 0 heads.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    max_positions: int | None
    moe_layers: tuple[int, ...]
    n_experts: int
    top_k: int
    attention_layers: tuple[int, ...] = ()
    """The layers that have heads; others mix tokens by other means."""


def read_geometry(hf: nn.Module, family: Family) -> Geometry:
    """The geometry of ``hf``. Raises :class:`NotSupported` when heads do not divide the o_proj input."""
    config: Any = hf.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = submodule(hf, family.layers)
    outputs = [submodule(layer, family.output) for layer in layers]
    with_heads = tuple(layer for layer, output in enumerate(outputs) if output is not None)
    n_heads = (getattr(text, "num_attention_heads", None) or 0) if with_heads else 0
    width = in_features(outputs[with_heads[0]]) if n_heads else 0
    if n_heads and width % n_heads:
        raise NotSupported(
            f"The attention output projection takes {width} features, which {n_heads} heads do not divide: "
            "this architecture does not keep its heads side by side there."
        )
    routers = {i: find_router(submodule(layer, family.mlp)) for i, layer in enumerate(layers)}
    moe = tuple(i for i, router in routers.items() if router is not None)
    first = routers[moe[0]] if moe else None
    core = None if first is None else core_router(first)
    return Geometry(
        n_layers=len(layers),
        d_model=text.hidden_size,
        n_heads=n_heads,
        n_kv_heads=(getattr(text, "num_key_value_heads", None) or n_heads) if n_heads else 0,
        d_head=width // n_heads if n_heads else 0,
        vocab_size=text.vocab_size,
        max_positions=getattr(text, "max_position_embeddings", None),
        moe_layers=moe,
        n_experts=_n_experts(core),
        top_k=0 if core is None else int(core.top_k),
        attention_layers=with_heads if n_heads else (),
    )


def in_features(projection: Any) -> int:
    """Input width of a Linear, a GPT-2 Conv1D, a quantized or an adapted layer."""
    for owner in (projection, getattr(projection, "base_layer", None)):
        for name in ("in_features", "nx"):
            if isinstance(size := getattr(owner, name, None), int):
                return size
    raise NotSupported(f"Cannot read the input width of a {type(projection).__name__}.")


def _n_experts(core: Any) -> int:
    for name in ("num_experts", "n_routed_experts", "num_local_experts"):
        if isinstance(size := getattr(core, name, None), int):
            return size
    return 0
