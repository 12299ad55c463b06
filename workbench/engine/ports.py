"""From a site to the module, the side of it, and how to read and write the value there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from workbench.engine.context import ForwardContext
from workbench.engine.families import MIXERS, Family, submodule
from workbench.engine.geometry import Geometry
from workbench.engine.routing import Routing, find_router
from workbench.engine.sites import HEAD_KINDS, Site
from workbench.errors import NotSupported
from workbench.typing import Tensor

Side = Literal["in", "out", "pattern", "experts"]


@dataclass(frozen=True)
class Port:
    """Where a site's value passes. ``raw`` is what torch hands over: an input tensor, an output, a pattern."""

    module: nn.Module
    side: Side
    get: Callable[[Any, ForwardContext], Any]
    put: Callable[[Any, Any, ForwardContext], Any]
    needs: Port | None = None
    """A port whose value must have been kept before (``ctx.scratch[port]``) for ``get`` to work."""


def first(raw: Any) -> Any:
    """The tensor of an output that may be a tuple, or a list (OpenAI GPT)."""
    return raw[0] if isinstance(raw, tuple | list) else raw


def with_first(raw: Any, value: Any) -> Any:
    """``raw`` with its (first) tensor replaced."""
    return (value, *raw[1:]) if isinstance(raw, tuple | list) else value


def _plain(module: nn.Module, side: Side) -> Port:
    """The tensor itself, [batch, pos, feature] also where a family flattens tokens (OPT's MLP)."""

    def get(raw: Any, ctx: ForwardContext) -> Tensor:
        value: Tensor = first(raw)
        return value if value.ndim > 2 else value.unflatten(0, (ctx.batch, -1))

    def put(raw: Any, value: Tensor, _ctx: ForwardContext) -> Any:
        return with_first(raw, value if first(raw).ndim > 2 else value.flatten(0, 1))

    return Port(module, side, get, put)


@dataclass(frozen=True)
class _Place:
    """A site in a given model."""

    layer: nn.Module
    family: Family
    geometry: Geometry
    site: Site
    edit: bool

    def part(self, path: str) -> Any:
        """A module of the layer."""
        return submodule(self.layer, path)


def port(hf: nn.Module, family: Family, geometry: Geometry, site: Site, *, edit: bool = False) -> Port | None:
    """The port of ``site``, or None when this model has no such site. ``edit``: the value will be changed."""
    assert site.layer is not None
    layer = submodule(hf, f"{family.layers}.{site.layer}")
    if site.kind in HEAD_KINDS and site.layer not in geometry.attention_layers:
        return None
    return _PORTS[site.kind](_Place(layer, family, geometry, site, edit))


def _out(module: Any) -> Port | None:
    return None if module is None else _plain(module, "out")


def _mixer(at: _Place) -> Any:
    """What mixes tokens in place of attention or beside it; an attention without heads (MiniMax's) is one."""
    has_heads = at.part(at.family.output) is not None
    beside = [path for path in MIXERS if not (has_heads and path == at.family.attention)]
    mixer = next((part for path in beside if (part := at.part(path)) is not None), None)
    if mixer is None and not has_heads:
        return at.part(at.family.attention)
    return mixer


def _resid_pre(at: _Place) -> Port | None:
    return _plain(at.layer, "in")


def _resid_post(at: _Place) -> Port | None:
    return _plain(at.layer, "out")


def _resid_mid(at: _Place) -> Port | None:
    """Reading: the input of the module after the addition. Writing there would miss the residual branch, so an
    edit is made where the attention output is added: attn_out + (new - old)."""
    inside = None if at.family.resid_mid is None else at.part(at.family.resid_mid)
    adds = [part for part in (at.part(at.family.attn_out), _mixer(at)) if part is not None]
    if inside is None or len(adds) != 1:
        return None
    if not at.edit:
        return _plain(inside, "in")
    before = _residual_into_attention(at)

    def get(raw: Any, ctx: ForwardContext) -> Tensor:
        return ctx.scratch[before] + first(raw)

    def put(raw: Any, value: Tensor, ctx: ForwardContext) -> Any:
        return with_first(raw, first(raw) + (value - get(raw, ctx)))

    return Port(adds[0], "out", get, put, needs=before)


def _residual_into_attention(at: _Place) -> Port:
    """The residual stream inside the layer's own forward: gradient checkpointing recomputes that, and not the
    hooks around it."""
    inside = None if at.family.attention_in is None else at.part(at.family.attention_in)
    return _plain(at.layer if inside is None else inside, "in")


def _attn_out(at: _Place) -> Port | None:
    return _out(at.part(at.family.attn_out)) if at.site.layer in at.geometry.attention_layers else None


def _mlp_out(at: _Place) -> Port | None:
    return _out(at.part(at.family.mlp_out))


def _mixer_out(at: _Place) -> Port | None:
    return _out(_mixer(at))


def _mlp_post(at: _Place) -> Port | None:
    inner = None if at.family.mlp_post is None else at.part(at.family.mlp_post)
    return None if inner is None or find_router(at.part(at.family.mlp)) else _plain(inner, "in")


def _z(at: _Place) -> Port | None:
    heads = at.geometry.n_heads
    return Port(
        at.part(at.family.output),
        "in",
        lambda raw, _ctx: raw.view(*raw.shape[:-1], heads, -1),  # unflatten's, without its Python
        lambda _raw, value, _ctx: value.flatten(-2),
    )


def _qkv(at: _Place) -> Port | None:
    path = {"q": at.family.query, "k": at.family.key, "v": at.family.value}[at.site.kind]
    module = None if path is None else at.part(path)
    if module is None:
        return None
    heads = at.geometry.n_heads if at.site.kind == "q" else at.geometry.n_kv_heads
    if at.family.fused == "separate":
        return Port(
            module,
            "out",
            lambda raw, _ctx: raw.unflatten(-1, (heads, -1)),
            lambda _raw, value, _ctx: value.flatten(-2),
        )
    part = "qkv".index(at.site.kind)
    return (
        _in_blocks(module, at.geometry, part) if at.family.fused == "blocks" else _per_head(module, at.geometry, part)
    )


def _in_blocks(module: nn.Module, geometry: Geometry, part: int) -> Port:
    counts = (geometry.n_heads, geometry.n_kv_heads, geometry.n_kv_heads)
    sizes = [count * geometry.d_head for count in counts]

    def get(raw: Tensor, _ctx: ForwardContext) -> Tensor:
        return raw.split(sizes, dim=-1)[part].unflatten(-1, (counts[part], -1))

    def put(raw: Tensor, value: Tensor, _ctx: ForwardContext) -> Tensor:
        parts = list(raw.split(sizes, dim=-1))
        parts[part] = value.flatten(-2)
        return torch.cat(parts, dim=-1)

    return Port(module, "out", get, put)


def _per_head(module: nn.Module, geometry: Geometry, part: int) -> Port:
    def get(raw: Tensor, _ctx: ForwardContext) -> Tensor:
        return raw.unflatten(-1, (geometry.n_heads, 3, -1))[..., part, :]

    def put(raw: Tensor, value: Tensor, _ctx: ForwardContext) -> Tensor:
        parts = list(raw.unflatten(-1, (geometry.n_heads, 3, -1)).unbind(-2))
        parts[part] = value
        return torch.stack(parts, dim=-2).flatten(-3)

    return Port(module, "out", get, put)


def _pattern(at: _Place) -> Port | None:
    attention = at.part(at.family.attention)
    return Port(attention, "pattern", lambda raw, _ctx: raw, lambda _raw, value, _ctx: value)


def _router(at: _Place) -> Port | None:
    router = find_router(at.part(at.family.mlp))
    if router is None:
        return None

    def get(raw: Any, ctx: ForwardContext) -> Routing:
        if len(raw) < 3:  # Llama 4
            raise NotSupported("the router hands on a score of every expert, not which ones it selected")
        return Routing(*(value.view(ctx.batch, -1, value.shape[-1]) for value in raw[:3]))

    def put(raw: Any, value: Routing, _ctx: ForwardContext) -> Any:
        return (*(new.reshape(old.shape) for new, old in zip(value, raw[:3], strict=True)), *raw[3:])

    return Port(router, "out", get, put)


def _expert(at: _Place) -> Port | None:
    mlp = at.part(at.family.mlp)
    if find_router(mlp) is None:
        return None
    expert = at.site.expert

    def get(raw: Any, ctx: ForwardContext) -> Tensor:
        return raw.contribution(expert).view(ctx.batch, -1, at.geometry.d_model)

    def put(raw: Any, value: Tensor, _ctx: ForwardContext) -> Any:
        return raw.with_contribution(expert, value.reshape(-1, at.geometry.d_model))

    return Port(mlp.experts, "experts", get, put)


_PORTS: dict[str, Callable[[_Place], Port | None]] = {
    "resid_pre": _resid_pre,
    "resid_mid": _resid_mid,
    "resid_post": _resid_post,
    "attn_out": _attn_out,
    "mlp_out": _mlp_out,
    "mixer_out": _mixer_out,
    "mlp_post": _mlp_post,
    "q": _qkv,
    "k": _qkv,
    "v": _qkv,
    "z": _z,
    "pattern": _pattern,
    "router": _router,
    "expert": _expert,
}
