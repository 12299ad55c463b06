"""A tiny forward (two rows of four tokens) at load that proves the map: a wrong site fails here, not in a paper.

Checked: the heads' writes sum to the attention output; the sublayers' outputs sum to the residual stream; the
router recomputed equals the router; attention rows sum to one (less an attention sink) and pattern times values is z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, rearrange
from torch import nn
from transformers.pytorch_utils import Conv1D

from workbench.engine.families import FAMILIES, submodule
from workbench.engine.hub import Hub, SiteHook
from workbench.engine.routing import Routing, reroute
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.typing import Tensor

_TOKENS = 4


_KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mixer_out", "mlp_out", "mlp_post", "q", "k", "v", "z",
          "pattern", "router", "expert")  # fmt: skip
_ADDITIVE = ("attn_out", "mlp_out", "resid_mid")
_WRONG = (NotSupported, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
"""What reading a site raises where the module there is not what its name says."""


@torch.no_grad()
def self_check(hub: Hub) -> None:
    """Prove the map of sites on this model.

    A site that is not what the map says is withheld in its layer, with the reason in ``hub.withheld``; the rest of the
    model works.
    """
    values = _values(hub)
    for layer in range(hub.geometry.n_layers):
        at = {site.kind: value for site, value in values.items() if site.layer == layer}
        if not _finite(at):
            continue  # a damaged model proves nothing; what is recorded from it is flagged
        for kinds, check in _CHECKS:
            if any(kind in at for kind in kinds):
                _prove(hub, layer, at, kinds, check)


def _prove(hub: Hub, layer: int, at: dict[str, Any], kinds: tuple[str, ...], check: _Check) -> None:
    try:
        check(hub, layer, at)
    except _WRONG as error:
        for kind in kinds:
            hub.withheld.add(kind, [layer], _reason(layer, error))


def _reason(layer: int, error: Exception) -> str:
    said = error.what if isinstance(error, _Unproved) else (str(error).splitlines() or [type(error).__name__])[0][:120]
    return f"at layer {layer} {said}"


def _values(hub: Hub) -> dict[Site, Any]:
    """What every site holds in one forward pass; kinds that cannot be read there are withheld."""
    kinds = _TABLE_KINDS if hub.hf.config.model_type in FAMILIES else _KINDS
    names = [name.replace(".expert", ".expert[0]") for name in hub.sites()]
    sites = [site for name in names if (site := Site.parse(name)).kind in kinds]
    try:
        values = _read(hub, sites)
    except _WRONG:
        _read(hub, [])  # a model that does not run at all says so itself
        values = _read_by_kind(hub, sites)
    experts = any(site.kind == "expert" for site in values)
    for site in sites:
        if site not in values and not (site.kind == "expert" and experts):  # one that no token went to is not called
            hub.withheld.add(site.kind, [site.layer or 0], "the model runs code that calls no hook there")
    return values


def _read_by_kind(hub: Hub, sites: list[Site]) -> dict[Site, Any]:
    values: dict[Site, Any] = {}
    for kind in _KINDS:
        try:
            values |= _read(hub, [site for site in sites if site.kind == kind])
        except _WRONG as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:120]
            hub.withheld.add(kind, range(hub.geometry.n_layers), f"it could not be read ({said})")
    return values


def _read(hub: Hub, sites: list[Site]) -> dict[Site, Any]:
    hf = hub.hf
    values: dict[Site, Any] = {}

    def keep(site: Site) -> SiteHook:
        return SiteHook(site, lambda value, _ctx: values.__setitem__(site, value))

    device = hf.get_input_embeddings().weight.device
    ids = torch.arange(1, 1 + 2 * _TOKENS, device="cpu" if device.type == "meta" else device).view(2, _TOKENS)
    training = hf.training
    hf.eval()
    try:
        with hub.hooked([keep(site) for site in sites], all_called=False):
            hf.base_model(input_ids=ids % hub.geometry.vocab_size, use_cache=False)
    finally:
        hf.train(training)
    return values


def _finite(at: dict[str, Any]) -> bool:
    tensors = [tensor for value in at.values() for tensor in (value[:2] if isinstance(value, Routing) else (value,))]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _close(own: Tensor, other: Tensor) -> bool:
    """Equal up to the rounding of the dtype and of large cancelling terms."""
    slack = 1e-3 if other.dtype in (torch.float32, torch.float64) else 3e-2
    own, other = own.float(), other.float().to(own.device)
    scale = max(float(own.abs().max()), float(other.abs().max()), 1e-6)
    return bool((own - other).abs().max() <= slack * scale)


class _Unproved(NotSupported):
    """A site that is not what the map says."""

    def __init__(self, layer: int, what: str) -> None:
        self.what = what
        super().__init__(f"at layer {layer} {what}")


def _fail(layer: int, what: str) -> NotSupported:
    return _Unproved(layer, what)


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
    rows = weight.T if type(output) is nn.Linear else weight
    by_head = rearrange(rows, "(head d_head) d_model -> head d_head d_model", head=geometry.n_heads)
    total = einsum(z.float(), by_head.float(), "batch pos head d_head, head d_head d_model -> batch pos d_model")
    if output.bias is not None:
        total = total + output.bias.float()
    if not _close(total.to(weight.dtype), at["attn_out"]):
        raise _fail(layer, "the heads' writes do not sum to the attention output")


def _check_stream(_hub: Hub, layer: int, at: dict[str, Any]) -> None:
    for kind in ("resid_pre", "resid_post"):
        if kind in at and (at[kind].ndim != 3 or at[kind].shape[:2] != (2, _TOKENS)):
            raise _fail(layer, f"the residual stream is no [row, pos, d_model]: two rows of four tokens are "
                        f"{list(at[kind].shape)}")  # fmt: skip


def _check_sum(hub: Hub, layer: int, at: dict[str, Any]) -> None:
    """What is added between the residual streams before and after is what the sublayers put out."""
    in_table = hub.hf.config.model_type in FAMILIES
    if in_table and not {"attn_out", "mlp_out"} <= at.keys():
        return
    if not in_table and not {"attn_out", "mlp_out", "mixer_out"} & at.keys():
        return
    total = at["resid_pre"].float()
    for kind in ("attn_out", "mixer_out", "mlp_out"):
        if kind in at:
            total = total + at[kind].float().to(total.device)
    if not _close(total, at["resid_post"]):
        raise _fail(layer, "resid_pre + attn_out + mlp_out is not resid_post")


def _check_mid(hub: Hub, layer: int, at: dict[str, Any]) -> None:
    if hub.hf.config.model_type in FAMILIES:
        return
    before = [at[kind].float() for kind in ("resid_pre", "attn_out", "mixer_out") if kind in at]
    if not _close(sum(before[1:], before[0]), at["resid_mid"]):
        raise _fail(layer, "resid_pre + attn_out is not resid_mid")


def _check_mixer(_hub: Hub, layer: int, at: dict[str, Any]) -> None:
    if at["mixer_out"].shape != at["resid_post"].shape:
        raise _fail(layer, f"the mixer puts out {tuple(at['mixer_out'].shape)}")


def _check_post(hub: Hub, layer: int, at: dict[str, Any]) -> None:
    """The MLP's last projection of mlp_post is what the MLP puts out."""
    family = hub.family
    module = submodule(hub.hf, f"{family.layers}.{layer}.{family.mlp_post}")
    if hub.hf.config.model_type in FAMILIES or type(module) not in (nn.Linear, Conv1D) or "mlp_out" not in at:
        return
    if family.mlp_out == family.mlp and module.weight.device.type != "meta":
        if not _close(module.forward(at["mlp_post"].to(module.weight.dtype)), at["mlp_out"]):
            raise _fail(layer, "the MLP's last projection of mlp_post is not mlp_out")


def _check_widths(_hub: Hub, layer: int, at: dict[str, Any]) -> None:
    """Queries are as wide as keys; a projection that also holds a gate has no site."""
    if "k" in at and at["q"].shape[-1] != at["k"].shape[-1]:
        raise _fail(layer, f"a query is {at['q'].shape[-1]} wide and a key {at['k'].shape[-1]}")


def _check_pattern(hub: Hub, layer: int, at: dict[str, Any]) -> None:
    if (pattern := at.get("pattern")) is None:
        return
    rows = pattern.float().sum(-1)
    has_sink = hasattr(submodule(hub.hf, f"{hub.family.layers}.{layer}.{hub.family.attention}"), "sinks")
    if bool((rows > 1.01).any()) or (not has_sink and bool((rows < 0.99).any())):
        raise _fail(layer, "rows of the attention pattern do not sum to one")
    if "v" in at and "z" in at and at["v"].shape[-1] == at["z"].shape[-1]:
        values = at["v"].repeat_interleave(hub.geometry.n_heads // hub.geometry.n_kv_heads, dim=2)
        if not _close(torch.einsum("bhqk,bkhd->bqhd", pattern.float(), values.float()), at["z"]):
            raise _fail(layer, "pattern times values is not z")


def _check_router(hub: Hub, layer: int, at: dict[str, Any]) -> None:
    seen: Routing = at["router"]
    router = hub.module(Site("router", layer))
    weights, experts = reroute(router, seen.logits.flatten(0, -2))
    order, seen_order = experts.argsort(-1), seen.experts.flatten(0, -2).argsort(-1)
    same = torch.equal(experts.gather(-1, order), seen.experts.flatten(0, -2).gather(-1, seen_order))
    if not same or not _close(weights.gather(-1, order), seen.weights.flatten(0, -2).gather(-1, seen_order)):
        raise _fail(layer, "routing recomputed from the logits is not what the router did")


_TABLE_KINDS = frozenset(_KINDS) - {"resid_mid", "mlp_post", "q", "k", "expert"}
_Check = Callable[[Hub, int, dict[str, Any]], None]
_CHECKS: tuple[tuple[tuple[str, ...], _Check], ...] = (
    (("z",), _check_heads),
    (("resid_post", "resid_pre"), _check_stream),
    (("mixer_out",), _check_mixer),
    (_ADDITIVE, _check_sum),
    (("resid_mid",), _check_mid),
    (("mlp_post",), _check_post),
    (("q",), _check_widths),
    (("pattern", "v"), _check_pattern),
    (("router", "expert"), _check_router),
)
"""Each proof, the kind of site that it needs first, and every kind that is withheld where it fails."""
