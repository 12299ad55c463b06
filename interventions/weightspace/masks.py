"""Masks over the weights of a model: whole tensors, rows, heads, everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from interventions.weightspace.swapping import base_parameters, find_parameter
from workbench.engine.families import Family
from workbench.engine.geometry import in_features
from workbench.engine.sites import parse_label
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Tensor

Mask = dict[str, Tensor]
"""Parameter name -> bool tensor of its shape: True where the entry belongs to the region."""

PARTS = ("q", "k", "v", "o")


def tensor_mask(model: AdaptedModel, names: Iterable[str]) -> Mask:
    """Whole tensors, by parameter name."""
    parameters = base_parameters(model.hf)
    return {name: torch.ones(find_parameter(parameters, name).shape, dtype=torch.bool) for name in _listed(names)}


def row_mask(model: AdaptedModel, rows: Mapping[str, Sequence[int]]) -> Mask:
    """Rows of the first axis: output features of a Linear, tokens of an embedding, experts of fused experts."""
    parameters, mask = base_parameters(model.hf), {}
    for name, selected in rows.items():
        shape = find_parameter(parameters, name).shape
        beyond = [row for row in selected if not 0 <= row < shape[0]]
        if beyond:
            raise UserError(f"{name} has rows 0 to {shape[0] - 1}, so row {beyond[0]} does not exist.")
        mask[name] = torch.zeros(shape, dtype=torch.bool)
        mask[name][list(selected)] = True
    return mask


def head_mask(model: AdaptedModel, heads: Iterable[str], parts: str = "qo") -> Mask:
    """The weights of attention heads, given as labels such as ``L1H3``.

    ``parts``: any of q, k, v (the rows that make a head's query, key, value, with their biases) and o (the columns
    that write its output). Query heads that share a key/value head share its k and v rows. Raises
    :class:`NotSupported` where a part is not a matrix of its own (latent attention).
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise unknown_name("part of a head", "".join(unknown) or parts, PARTS)
    mask: Mask = {}
    parameters = base_parameters(model.hf)
    for label in _listed(heads):
        layer, kind, head = parse_label(label)
        if kind != "head" or head is None or not (layer < model.n_layers and head < model.n_heads):
            raise UserError(
                f"{label!r} is no head of this model: it has L0H0 to L{model.n_layers - 1}H{model.n_heads - 1}."
            )
        for part in parts:
            for name, piece in _head_part(model, parameters, layer, head, part).items():
                mask[name] = mask[name] | piece if name in mask else piece
    return mask


def complement(model: AdaptedModel, mask: Mapping[str, Tensor], eligible: Iterable[str] | None = None) -> Mask:
    """Every other entry of the ``eligible`` parameters (default: all of them)."""
    parameters = base_parameters(model.hf)
    names = list(parameters) if eligible is None else _listed(eligible)
    result = {}
    for name in names:
        region = mask.get(name)
        whole = torch.ones(find_parameter(parameters, name).shape, dtype=torch.bool)
        result[name] = whole if region is None else ~region
    return result


def _listed(names: Iterable[str]) -> list[str]:
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise UserError("Nothing was chosen: name at least one tensor or head.")
    return listed


def _head_part(
    model: AdaptedModel, parameters: Mapping[str, Any], layer: int, head: int, part: str
) -> dict[str, Bool[Tensor, "*shape"]]:
    family = model.hub.family
    path = {"q": family.query, "k": family.key, "v": family.value, "o": family.output}[part]
    if path is None:
        raise NotSupported(f"{type(model.inner).__name__} has no {part} projection per head of its own.")
    stem = f"{family.layers}.{layer}.{path}"
    weight = find_parameter(parameters, f"{stem}.weight")
    module = model.inner.get_submodule(stem)
    transposed = _is_conv1d(module)
    masks = {f"{stem}.weight": torch.zeros(weight.shape, dtype=torch.bool)}
    view = masks[f"{stem}.weight"].T if transposed else masks[f"{stem}.weight"]
    if part == "o":
        width = in_features(module) // model.n_heads
        view[:, head * width : (head + 1) * width] = True
        return masks
    rows = _head_rows(model, family, view.shape[0], head, part)
    view[rows] = True
    if f"{stem}.bias" in parameters:
        masks[f"{stem}.bias"] = torch.zeros(parameters[f"{stem}.bias"].shape, dtype=torch.bool)
        masks[f"{stem}.bias"][rows] = True
    return masks


def _head_rows(model: AdaptedModel, family: Family, height: int, head: int, part: str) -> slice:
    """Which output rows of the (possibly fused) projection make this head's query, key or value."""
    heads = model.n_heads if part == "q" else model.n_kv_heads
    own = head if part == "q" else head * model.n_kv_heads // model.n_heads
    if family.fused == "separate":
        width, start = height // heads, 0
        return slice(start + own * width, start + (own + 1) * width)
    order = "qkv".index(part)
    if family.fused == "per_head":
        width = height // (3 * heads)
        return slice((3 * own + order) * width, (3 * own + order + 1) * width)
    width = height // (model.n_heads + 2 * model.n_kv_heads)
    start = (0, model.n_heads, model.n_heads + model.n_kv_heads)[order] * width
    return slice(start + own * width, start + (own + 1) * width)


def _is_conv1d(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(getattr(module, "base_layer", module), Conv1D)
