"""Interventions as plain settings plus named tensors, their content hash, and how values are shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from interventions.gate import Gate
from workbench.engine.positions import Where, where
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.typing import Tensor

_TENSOR = "@tensor"
_GATE = "@gate"


def pack(values: Mapping[str, Any], scopes: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split ``values`` into JSON values and tensors; ``scopes`` names the values that are positions."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.detach()
            return {_TENSOR: name}
        if isinstance(value, Gate):
            return {
                _GATE: {
                    field.name: plain(getattr(value, field.name), f"{name}.{field.name}") for field in fields(value)
                }
            }
        if isinstance(value, Mapping):
            return {str(key): plain(entry, f"{name}.{key}") for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry, f"{name}.{place}") for place, entry in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise NotSupported(f"{name} is a {type(value).__name__}, which a recipe file cannot hold.")

    settings = {
        name: where(value).to_json() if name in scopes else plain(value, name) for name, value in values.items()
    }
    return settings, tensors


def unpack(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], scopes: tuple[str, ...] = ()) -> dict[str, Any]:
    """The inverse of :func:`pack`; lists come back as tuples."""

    def rich(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {_TENSOR}:
            if value[_TENSOR] not in tensors:
                raise UserError(f"The recipe refers to a tensor {value[_TENSOR]!r} that its file does not hold.")
            return tensors[value[_TENSOR]]
        if isinstance(value, dict) and set(value) == {_GATE}:
            return _gate(rich(value[_GATE]))
        if isinstance(value, dict):
            return {key: rich(entry) for key, entry in value.items()}
        return tuple(rich(entry) for entry in value) if isinstance(value, list) else value

    return {name: Where.from_json(value) if name in scopes else rich(value) for name, value in settings.items()}


def _gate(settings: Any) -> Gate:
    known = {field.name for field in fields(Gate)}
    for name in settings if isinstance(settings, dict) else [shown(settings)]:
        if name not in known:
            raise unknown_name("setting of Gate", name, known)
    return Gate(**settings)


def content_hash(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Sha256 in hex over the settings and over name, dtype, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        there = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name}{there.dtype}{list(there.shape)}".encode())
        if there.numel():
            # as_strided: one number expanded counts as contiguous with stride 0, which cannot be viewed as bytes
            digest.update(there.as_strided((there.numel(),), (1,)).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def shown(value: Any) -> str:
    """A value on one line: tensors by shape and norm, words plainly."""
    if isinstance(value, Tensor):
        there = value.detach().float()
        if there.numel() <= 4:
            return str([round(value, 4) for value in there.reshape(-1).tolist()])
        return f"<{'x'.join(map(str, there.shape))}, norm {there.norm():.4g}>"
    if isinstance(value, Mapping):
        inside = [f"{key}: {shown(entry)}" for key, entry in list(value.items())[:4]]
        return "{" + ", ".join(inside + (["…"] if len(value) > 4 else [])) + "}"
    if isinstance(value, Where):
        parts = {"exclude": value.exclude, "tokens": value.tokens, "rows": value.rows}
        options = "".join(f", {name}={part!r}" for name, part in parts.items() if part is not None)
        return f"Where({value.at!r}{options})" if options else repr(value.at)
    return repr(value)
