"""The weight matrices that gradients are taken of: an adapter's factors, or linear layers that a finding names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.models.pair import ModelPair

FACTORS = ("lora_A", "lora_B")
NO_FACTORS = (
    "The tuned model has no LoRA factors (it is merged, or fully tuned), so say whose gradients to take: "
    "modules=['down_proj'], or load the adapter itself as the tuned model."
)


def check_factors(tuned: str | None, modules: Sequence[str]) -> None:
    """Raises :class:`UserError` where a folder shows that it is no adapter, and ``modules`` names no matrices."""
    folder = Path(tuned or "").expanduser()
    whole = (folder / "config.json").exists() and not (folder / "adapter_config.json").exists()
    if tuned and whole and not modules:
        raise UserError(NO_FACTORS)


def trained_matrices(pair: ModelPair, layers: Any = None, modules: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Name -> linear module of the tuned model whose gradient is taken.

    Of a LoRA its factors; of other models the linear layers that ``modules`` name. ``layers`` (indices or fractions)
    and ``modules`` (parts of names, as down_proj) restrict both.

    Raises:
        UserError: Nothing is left, or the tuned model has no LoRA factors and ``modules`` is empty.
    """
    inner, names = pair.tuned.inner, list(modules)
    linear: dict[str, nn.Module] = {name: part for name, part in inner.named_modules() if isinstance(part, nn.Linear)}
    factors = {name: part for name, part in linear.items() if any(f".{factor}." in name for factor in FACTORS)}
    if not factors and not names:
        raise UserError(NO_FACTORS)
    wanted = None if layers is None else set(resolve_layers(layers, pair.tuned.n_layers))
    prefix = re.escape(pair.tuned.hub.family.layers) + r"\.(\d+)\."
    matrices: dict[str, nn.Module] = {
        name: part
        for name, part in (factors or linear).items()
        if (not names or any(piece in name for piece in names)) and (wanted is None or _layer(prefix, name) in wanted)
    }
    if not matrices:
        known = sorted({name.split(".")[-1] if not factors else name.split(".")[-3] for name in (factors or linear)})
        raise UserError(
            f"No weight matrix is left by layers={layers} and modules={names}; known modules: {', '.join(known)}."
        )
    return matrices


def _layer(prefix: str, name: str) -> int | None:
    match = re.match(prefix, name)
    return None if match is None else int(match.group(1))
