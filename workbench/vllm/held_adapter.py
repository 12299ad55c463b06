"""Which adapters vLLM can hold beside their base, read from the adapter's settings before an engine starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import NotSupported, UserError
from workbench.strict_json import read_json

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


def held_rank(folder: str) -> int:
    """The rank that the engine makes room for.

    Raises:
        UserError: The folder holds no adapter.
        NotSupported: vLLM cannot run this adapter, with the reason.
    """
    settings = Path(folder) / "adapter_config.json"
    if not settings.is_file():
        raise UserError(
            f"vLLM runs a base with its LoRA in one engine, and {folder} holds no adapter: take each full model as a "
            "model of its own, or the local executor."
        )
    config = read_json(settings.read_text(encoding="utf-8"))
    reason = _reason(config)
    if reason:
        raise NotSupported(f"vLLM cannot hold the adapter {folder}, which {reason}: use the local executor.")
    return next(rank for rank in RANKS if rank >= int(config["r"]))


def _reason(config: Mapping[str, Any]) -> str:
    kind, targets = config.get("peft_type"), config.get("target_modules")
    names = [targets] if isinstance(targets, str) else list(targets or ())
    if kind != "LORA":
        return f"is of kind {kind} and no LoRA"
    if config.get("use_dora"):
        return "is a DoRA"
    if config.get("modules_to_save"):
        return f"brings whole modules ({', '.join(config['modules_to_save'])})"
    if config.get("bias", "none") != "none":
        return "changes biases"
    if config.get("alpha_pattern") or config.get("rank_pattern"):
        return "has ranks or alphas of their own for some modules"
    if any(name.split(".")[-1] in ("lm_head", "embed_tokens") for name in names):
        return "changes the embedding or the head"
    return f"has rank {config['r']}" if config["r"] > RANKS[-1] else ""
