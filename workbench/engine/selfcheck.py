"""A tiny forward (two rows of four tokens) at load that proves the map: a wrong site fails here, not in a paper.

Checked: the heads' writes sum to the attention output; the sublayers' outputs sum to the residual stream; the
router recomputed equals the router; attention rows sum to one (less an attention sink) and pattern times values is z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from workbench.engine.families import FAMILIES, submodule
from workbench.engine.hub import Hub, SiteHook
from workbench.engine.routing import Routing, reroute
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.typing import Tensor

_TOKENS = 4


@torch.no_grad()
def self_check(hub: Hub) -> None:
    """Raise :class:`NotSupported`, naming the site, when the model does not compute what the map says."""
    values = _values(hub)
    for layer in range(hub.geometry.n_layers):
        at = {site.kind: value for site, value in values.items() if site.layer == layer}
        if not _finite(at):
            continue  # a damaged model proves nothing; what is recorded from it is flagged
        if "z" in at:
            _check_heads(hub, layer, at)
        if not _residual_adds_up(at):
            _withhold_additive(hub, layer)
        _check_pattern(hub, layer, at)
        if "router" in at:
            _check_router(hub, layer, at["router"])


def _values(hub: Hub) -> dict[Site, Any]:
    hf = hub.hf
    kinds = {"resid_pre", "resid_post", "attn_out", "mlp_out", "z", "v", "pattern", "router"}
    sites = [site for name in hub.sites() if not name.endswith("expert") and (site := Site.parse(name)).kind in kinds]
    values: dict[Site, Any] = {}

    def keep(site: Site) -> SiteHook:
        return SiteHook(site, lambda value, _ctx: values.__setitem__(site, value))

    hooks = [keep(site) for site in sites]
    device = hf.get_input_embeddings().weight.device
    ids = torch.arange(1, 1 + 2 * _TOKENS, device="cpu" if device.type == "meta" else device).view(2, _TOKENS)
    training = hf.training
    hf.eval()
    try:
        with hub.hooked(hooks, all_called=False):
            hf.base_model(input_ids=ids % hub.geometry.vocab_size, use_cache=False)
    finally:
        hf.train(training)
    hub.withheld |= {site.kind for site in sites} - {site.kind for site in values}  # hooks that are never called
    return values


def _finite(at: dict[str, Any]) -> bool:
    tensors = [one for value in at.values() for one in (value[:2] if isinstance(value, Routing) else (value,))]
    return all(bool(torch.isfinite(one).all()) for one in tensors)


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to the rounding of the dtype and of large cancelling terms."""
    slack = 1e-3 if other.dtype in (torch.float32, torch.float64) else 3e-2
    one, other = one.float(), other.float().to(one.device)
    scale = max(float(one.abs().max()), float(other.abs().max()), 1e-6)
    return bool((one - other).abs().max() <= slack * scale)


def _fail(layer: int, what: str) -> NotSupported:
    return NotSupported(
        f"The self-check failed at layer {layer}: {what}. The map of this architecture is wrong for this model, so "
        "nothing was recorded from it; load with check=False only to read the residual stream."
    )


def _check_heads(hub: Hub, layer: int, at: dict[str, Any]) -> None:
    family, geometry = hub.family, hub.geometry
    z = at["z"]
    if z.shape[-2:] != (geometry.n_heads, geometry.d_head):
        raise _fail(layer, f"z has shape {tuple(z.shape)}, expected {geometry.n_heads} heads of {geometry.d_head}")
    output = submodule(hub.hf, f"{family.layers}.{layer}.{family.output}")
    weight = getattr(output, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.device.type == "meta":
        return
    if type(output) not in (nn.Linear, Conv1D) or family.attn_out != family.output or "attn_out" not in at:
        return  # an adapted or quantized projection does not compute from its weight alone; withheld once checked
    by_head = (weight.T if type(output) is nn.Linear else weight).unflatten(0, (geometry.n_heads, -1))
    total = torch.einsum("bphd,hdm->bpm", z.float(), by_head.float())
    if output.bias is not None:
        total = total + output.bias.float()
    if not _close(total.to(weight.dtype), at["attn_out"]):
        raise _fail(layer, "the heads' writes do not sum to the attention output")


def _residual_adds_up(at: dict[str, Any]) -> bool:
    if "attn_out" not in at or "mlp_out" not in at:
        return True
    pre, attn, mlp = (at[kind].float() for kind in ("resid_pre", "attn_out", "mlp_out"))
    device = pre.device
    return _close(pre + attn.to(device) + mlp.to(device), at["resid_post"])


def _withhold_additive(hub: Hub, layer: int) -> None:
    """Outside our table a block may scale or merge its residual branches; then those sites are not offered."""
    if hub.hf.config.model_type in FAMILIES:
        raise _fail(layer, "resid_pre + attn_out + mlp_out is not resid_post")
    hub.withheld |= {"attn_out", "mlp_out", "resid_mid"}


def _check_pattern(hub: Hub, layer: int, at: dict[str, Any]) -> None:
    if (pattern := at.get("pattern")) is None:
        return
    rows = pattern.float().sum(-1)
    has_sink = hasattr(submodule(hub.hf, f"{hub.family.layers}.{layer}.{hub.family.attention}"), "sinks")
    if bool((rows > 1.01).any()) or (not has_sink and bool((rows < 0.99).any())):
        raise _fail(layer, "rows of the attention pattern do not sum to one")
    if "v" in at and at["v"].shape[-1] == at["z"].shape[-1]:
        values = at["v"].repeat_interleave(hub.geometry.n_heads // hub.geometry.n_kv_heads, dim=2)
        if not _close(torch.einsum("bhqk,bkhd->bqhd", pattern.float(), values.float()), at["z"]):
            raise _fail(layer, "pattern times values is not z")


def _check_router(hub: Hub, layer: int, seen: Routing) -> None:
    router = hub.module(Site("router", layer))
    weights, experts = reroute(router, seen.logits.flatten(0, -2))
    order, seen_order = experts.argsort(-1), seen.experts.flatten(0, -2).argsort(-1)
    same = torch.equal(experts.gather(-1, order), seen.experts.flatten(0, -2).gather(-1, seen_order))
    if not same or not _close(weights.gather(-1, order), seen.weights.flatten(0, -2).gather(-1, seen_order)):
        raise _fail(layer, "routing recomputed from the logits is not what the router did")
