"""Where vLLM's decoder layers hold our sites. It fuses the residual stream into pairs and splits heads over devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.typing import Float, Tensor

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Whose layers hand on (what the MLP wrote, the residual stream before it) and write sublayers' outputs unchanged."""
_MODULES = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}
_ELSEWHERE = "PPMissingLayer"
SITES = tuple(_MODULES)
"""Kinds of site that can be read and changed there."""


@dataclass(frozen=True)
class Place:
    """A module whose output holds a site's value [token, d_model], and how to read and write it."""

    module: nn.Module
    get: Callable[[Any], Tensor]
    put: Callable[[Any, Tensor], Any]


def check_site(site: Site) -> None:
    """Raise :class:`NotSupported` for what vLLM's layout cannot give, with the reason."""
    if site.kind in _MODULES:
        return
    reasons = {
        "z": "its attention kernel writes heads that are split over devices",
        "pattern": "its attention kernel keeps no pattern",
        "resid_mid": "the residual stream is added inside a fused norm",
        "resid_pre": "it is resid_post of the layer below, which can be recorded",
    }
    reason = reasons.get(site.kind, "it passes inside a fused module")
    raise NotSupported(
        f"{site.name} is not to be had on vLLM, as {reason}: use {', '.join(SITES)}, or the local executor."
    )


def check_architecture(model: nn.Module) -> None:
    """Raise :class:`NotSupported` unless the layout of this vLLM model was tested."""
    check_name(type(model).__name__)


def check_name(name: str) -> None:
    """Raise :class:`NotSupported` unless the architecture of this name was tested; both libraries share the names."""
    if name not in ARCHITECTURES:
        raise NotSupported(
            f"Sites of {name} are not proved on vLLM, only those of {', '.join(ARCHITECTURES)}: use the local executor."
        )


def place_of(model: nn.Module, site: Site) -> Place | None:
    """Where ``site`` is in a vLLM model; None where another stage of its pipeline holds the layer."""
    check_site(site)
    layer: Any = model.get_submodule(f"model.layers.{site.layer}")
    if type(layer).__name__ == _ELSEWHERE:
        return None
    if site.kind == "resid_post":
        return Place(layer, lambda raw: raw[0] + raw[1], lambda raw, new: (new, torch.zeros_like(raw[1])))
    return Place(layer.get_submodule(_MODULES[site.kind]), lambda raw: raw, lambda _raw, new: new)


def read_out(model: nn.Module, states: Tensor) -> Float[Tensor, "token vocab"]:
    """Logits of normed last states, by the engine's own head; no adapter that it can hold changes the head."""
    processor, head = (model.get_submodule(name) for name in ("logits_processor", "lm_head"))
    plain, weights = (getattr(module, "base_layer", module) for module in (processor, head))
    logits: Tensor = plain(weights, states)
    return logits
