"""Several saved LoRAs of one base as one bank of factors, ready to be routed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

_FACTOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])\.weight")


def lora_bank(folders: Sequence[str | Path], model: AdaptedModel) -> dict[str, Any]:
    """The factors of plain LoRAs by module, for :class:`AdapterRouting`.

    Args:
        folders: PEFT adapter folders (adapter_config.json and adapter_model.safetensors); each is called as its folder.
        model: The base that they belong to.

    Returns:
        ``{"names": ..., "down": ..., "up": ...}``; modules that an adapter lacks, and ranks beyond its own, are 0.

    Raises:
        UserError: Fewer than two folders, two of one name, or no adapter there; NotSupported for another kind than a
            plain LoRA.
    """
    names = [Path(folder).resolve().name for folder in folders]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError("Give two adapter folders or more, with different names: a router chooses between them.")
    read = [_factors(Path(folder)) for folder in folders]
    paths = sorted({path for factors in read for path in factors})
    down, up = {}, {}
    for path in paths:
        own = [factors.get(path) for factors in read]
        like = next(factors for factors in own if factors is not None)
        rank = max(factors[0].shape[0] for factors in own if factors is not None)
        for factors in own:
            if factors is not None and (factors[0].shape[1], factors[1].shape[0]) != (
                like[0].shape[1],
                like[1].shape[0],
            ):
                raise UserError(f"The adapters at {path} have different widths: they are of different bases.")
        down[path] = torch.stack([_padded(factors and factors[0], (rank, like[0].shape[1])) for factors in own])
        up[path] = torch.stack([_padded(factors and factors[1], (like[1].shape[0], rank)) for factors in own])
    stem = "" if hasattr(model.inner, paths[0].split(".")[0]) else "model."
    return {"names": names, "down": {stem + p: t for p, t in down.items()}, "up": {stem + p: t for p, t in up.items()}}


def _factors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config_file.is_file() or not weights.is_file():
        raise UserError(f"{folder} holds no saved adapter: it needs adapter_config.json and adapter_model.safetensors.")
    config = json.loads(config_file.read_text())
    unusual = ("use_dora", "alora_invocation_tokens", "rank_pattern", "alpha_pattern")
    if (
        config.get("peft_type") != "LORA"
        or config.get("bias") != "none"
        or any(config.get(option) for option in unusual)
    ):
        raise NotSupported(f"The adapter at {folder} is no plain LoRA of one rank: routers weigh plain LoRAs here.")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    sides: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(weights).items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise NotSupported(f"The adapter at {folder} holds {name}, which is no factor of a plain LoRA.")
        sides.setdefault(match["path"], {})[match["side"]] = value.float()
    return {path: (side["A"], side["B"] * scale) for path, side in sides.items()}


def _padded(value: Tensor | None, shape: tuple[int, int]) -> Tensor:
    new = torch.zeros(shape)
    if value is not None:
        new[: value.shape[0], : value.shape[1]] = value
    return new
