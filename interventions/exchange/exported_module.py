"""Applies an exported recipe to a Hugging Face model with torch's own hooks; it needs torch and safetensors alone.

Beside this file lie ``steps.json`` (which module, which side, what is done, at which positions, behind which gate)
and ``vectors.safetensors``. The model is the one that the recipe was exported for: of an adapter pair, the base with
that adapter as PEFT loads it, or merged.

Positions are known as ``generate`` with its cache runs a model: a prompt in one pass (of two tokens or more, padded on
the left), then a token at a time.

    import sys; sys.path.insert(0, "folder")
    from exported_module import attach

    handles = attach(model)
    model.generate(...)
    for handle in handles:
        handle.remove()
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Change = Callable[[torch.Tensor], torch.Tensor]
HERE = Path(__file__).parent
STEPS, VECTORS = "steps.json", "vectors.safetensors"


def attach(model: Any, folder: str | Path = HERE) -> list[Any]:
    """Hook the recipe of ``folder`` into ``model``; returns the handles, whose ``remove()`` takes it out again."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    steps = json.loads((Path(folder) / STEPS).read_text(encoding="utf-8"))
    vectors = load_file(str(Path(folder) / VECTORS))
    handles = []
    readings: dict[str, list[torch.Tensor]] = {}
    for step in steps:
        gate = step.get("gate")
        if gate is not None and gate["direction"] not in readings:  # equal gates read once in a pass
            opened = readings[gate["direction"]] = []
            read = _reading(gate, vectors[gate["direction"]], opened)
            handles.append(_hooked(bare.get_submodule(gate["module"]), gate["side"], read))
        own = None if gate is None else readings[gate["direction"]]
        handles.append(_hooked(bare.get_submodule(step["module"]), step["side"], _changing(step, vectors, own)))
    return handles


def _reading(gate: dict[str, Any], direction: torch.Tensor, opened: list[torch.Tensor]) -> Change:
    """Leaves in ``opened`` which tokens [batch, token, 1] of this pass the gate is open for; changes nothing."""

    def read(value: torch.Tensor) -> torch.Tensor:
        work = torch.promote_types(value.dtype, torch.float32)
        along = value.detach().to(work) @ direction.to(value.device, work)
        fires = along >= gate["threshold"] if gate["fires"] == "above" else along <= gate["threshold"]
        opened[:] = [fires[..., None]]
        return value

    return read


def _changing(step: dict[str, Any], vectors: dict[str, torch.Tensor], opened: list[torch.Tensor] | None) -> Change:
    change = CHANGES[step["does"]]
    held = {name: vectors[key] for name, key in step["vectors"].items()}

    def changed(value: torch.Tensor) -> torch.Tensor:
        work = torch.float64 if value.dtype == torch.float64 else torch.float32
        parts = {name: vector.to(value.device, work) for name, vector in held.items()}
        made = change(value.to(work), **parts).to(value.dtype)
        if opened is not None:
            made = torch.where(opened[0].to(value.device), made, value)
        return _at(step.get("positions", "all"), made, value)

    return changed


def _at(positions: str, made: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The new values where a step acts; ``last`` is the prompt's last token, ``generated`` are those behind it."""
    if positions == "all":
        return made
    if value.shape[1] == 1:
        return made if "generated" in positions else value
    return torch.cat([value[:, :-1], made[:, -1:]], dim=1) if "last" in positions else value


def _hooked(module: Any, side: str, changed: Change) -> Any:
    def before(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (changed(arguments[0]), *arguments[1:]), named
        return arguments, {**named, "hidden_states": changed(named["hidden_states"])}

    def after(_module: Any, _arguments: Any, output: Any) -> Any:
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    if side == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _projected(value: torch.Tensor, basis: torch.Tensor, mean: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """h - strength (h - mean) Q Q^T, ``basis`` [k, width] orthonormal."""
    return value - strength * (((value - mean) @ basis.T) @ basis)


def _added(value: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """h + vector."""
    return value + vector


def _mapped(value: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """scale * z + offset."""
    return value * scale + offset


CHANGES: dict[str, Callable[..., torch.Tensor]] = {"project": _projected, "add": _added, "map": _mapped}
