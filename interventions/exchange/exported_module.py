"""Applies an exported recipe to a Hugging Face model with torch's own hooks; it needs torch and safetensors alone.

Beside this file lie ``steps.json`` (which module, which side, what is done) and ``vectors.safetensors``. The model is
the one that the recipe was exported for: of an adapter pair, the base with that adapter as PEFT loads it, or merged.

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

HERE = Path(__file__).parent
STEPS, VECTORS = "steps.json", "vectors.safetensors"


def attach(model: Any, folder: str | Path = HERE) -> list[Any]:
    """Hook the recipe of ``folder`` into ``model``; returns the handles, whose ``remove()`` takes it out again."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    steps = json.loads((Path(folder) / STEPS).read_text(encoding="utf-8"))
    vectors = load_file(str(Path(folder) / VECTORS))
    return [_hooked(bare.get_submodule(step["module"]), step, vectors) for step in steps]


def _hooked(module: Any, step: dict[str, Any], vectors: dict[str, torch.Tensor]) -> Any:
    change = CHANGES[step["does"]]
    held = {name: vectors[key] for name, key in step["vectors"].items()}

    def changed(value: torch.Tensor) -> torch.Tensor:
        work = torch.float64 if value.dtype == torch.float64 else torch.float32
        parts = {name: vector.to(value.device, work) for name, vector in held.items()}
        return change(value.to(work), **parts).to(value.dtype)

    def before(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (changed(arguments[0]), *arguments[1:]), named
        return arguments, {**named, "hidden_states": changed(named["hidden_states"])}

    def after(_module: Any, _arguments: Any, output: Any) -> Any:
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    if step["side"] == "in":
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
