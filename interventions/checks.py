"""What a model must have for an intervention to fit: layers, sites, heads, experts, widths, finite numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from workbench.engine.sites import Site, parse_label, resolve_layers
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

WIDE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Kinds of site whose value is [batch, pos, d_model]."""
Layer = int | float | str
Label = str | tuple[int, int]


def as_tensor(values: Any, name: str, *, ndim: tuple[int, ...]) -> Tensor:
    """``values`` as a finite floating tensor with one of the allowed numbers of axes."""
    try:
        value = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} is not an array of numbers: give a tensor.") from None
    if value.ndim not in ndim:
        raise UserError(f"{name} has shape {list(value.shape)}: give {' or '.join(map(str, ndim))} axes.")
    value = value if value.is_floating_point() else value.float()
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"{name} holds NaN or infinity: an intervention needs finite numbers.")
    return value


def as_prompt_lengths(numbers: Any) -> Tensor | None:
    """The real tokens of each prompt, [row] or one number for all; None stays None."""
    if numbers is None:
        return None
    try:
        lengths = torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError):
        lengths = torch.empty(0, 0)
    whole = lengths.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not whole or lengths.ndim > 1 or bool((lengths < 0).any()):
        raise UserError(
            f"prompt_lengths is {numbers!r}: give the number of real tokens of each prompt, or one number for all."
        )
    return lengths.long()


def wide_kind(site: str) -> str:
    """The short kind of a site of width d_model, without a layer. Raises :class:`UserError` for any other."""
    parsed = Site.parse(site)
    if parsed.layer is not None:
        raise UserError(f"Site {site!r} names its own layer: write site={parsed.kind!r} and layer={parsed.layer}.")
    if parsed.kind not in WIDE:
        raise unknown_name("site of width d_model", site, WIDE)
    return parsed.kind


def resolved(model: AdaptedModel, layer: Layer) -> int:
    """The layer's index in ``model``."""
    return resolve_layers(layer, model.n_layers)[0]


def site_in(model: AdaptedModel, kind: str, layer: Layer) -> Site:
    """The site in ``model``. Raises :class:`UserError` when it has no such site."""
    site = Site(kind, resolved(model, layer))
    model.hub.module(site)
    return site


def check_width(what: str, value: Tensor, width: int) -> None:
    """Raise :class:`UserError` unless the last axis of ``value`` has ``width`` entries."""
    if value.shape[-1] != width:
        raise UserError(f"{what} has width {value.shape[-1]}, but this model's is {width} there: it does not fit.")


def as_label(label: Label, kind: str) -> str:
    """``L3H5`` or ``L3E12`` from the text or from (layer, index)."""
    letter = {"head": "H", "expert": "E"}[kind]
    if isinstance(label, str):
        layer, number, index = parse_label(label)
        if number != kind:
            raise UserError(f"{label!r} is not the label of a {kind}: write L{layer}{letter}0 or ({layer}, 0).")
        return f"L{layer}{letter}{index}"
    try:
        layer, index = (int(part) for part in label)
    except (TypeError, ValueError):
        raise UserError(f"{label!r} is not a {kind}: write 'L3{letter}5' or (3, 5).") from None
    if layer < 0 or index < 0:
        raise UserError(f"{label!r} is not a {kind}: layers and {kind}s are counted from 0.")
    return f"L{layer}{letter}{index}"


def by_layer(labels: Iterable[str]) -> dict[int, list[int]]:
    """layer -> indices of heads or experts, both in ascending order."""
    indices: dict[int, list[int]] = {}
    for layer, _, index in sorted(parse_label(label) for label in labels):
        assert index is not None
        indices.setdefault(layer, []).append(index)
    return indices


def check_heads(model: AdaptedModel, labels: list[str] | tuple[str, ...], count: int | None = None) -> None:
    """Raise :class:`UserError` for a head that ``model`` does not have."""
    known = model.n_heads if count is None else count
    for layer, heads in by_layer(labels).items():
        resolved(model, layer)
        if heads[-1] >= known:
            raise UserError(f"Head L{layer}H{heads[-1]} is out of range: the model has heads 0 to {known - 1}.")
