"""Families outside our table, through TransformerLens's architecture adapters, read as data.

Nothing is wrapped or changed: an adapter names the parts of a layer, and we take the names. What it cannot say
for sure (how a fused q/k/v is laid out) has no site here; the load-time self-check guards the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from workbench.engine.by_module import family_by_module
from workbench.engine.families import Family, submodule
from workbench.errors import NotSupported


def foreign_family(hf: nn.Module) -> Family:
    """The family as TransformerLens's adapter names it, or by its modules where no adapter fits this model.

    Raises :class:`NotSupported` where neither does.
    """
    try:
        family = _adapter_family(hf)
        if _fits(hf, family):
            return family
    except NotSupported as unknown:
        try:
            return family_by_module(hf)
        except NotSupported as error:
            raise error from unknown
    return family_by_module(hf)


def _fits(hf: nn.Module, family: Family) -> bool:
    """Whether some layer has heads where the adapter says, and some layer has its MLP."""
    layers = list((submodule(hf, family.layers) or nn.ModuleList()).children())
    return all(any(submodule(layer, path) is not None for layer in layers) for path in (family.output, family.mlp))


def _adapter_family(hf: nn.Module) -> Family:
    blocks = _blocks(hf)
    parts = blocks.submodules
    attention = parts.get("attn")
    if attention is None or attention.name is None or "o" not in attention.submodules:
        raise NotSupported(
            f"{type(hf).__name__} does not keep one attention output projection per layer, so heads have no site "
            "in it: use a decoder-only transformer."
        )
    output = f"{attention.name}.{attention.submodules['o'].name}"
    inner = parts["mlp"].submodules.get("out") if "mlp" in parts else None
    mlp = parts["mlp"].name if "mlp" in parts else None
    mlp_post = None if inner is None else ".".join(part for part in (mlp, inner.name) if part)
    mlp_path = mlp or mlp_post
    if mlp_path is None:
        raise NotSupported(f"{type(hf).__name__} has layers without an MLP, which Tunescope does not cover yet.")
    parallel = "Parallel" in type(blocks).__name__ or "ln2" not in parts
    qkv = {key: _path(attention, key) for key in "qkv"}
    return Family(
        layers=blocks.name,
        attention=attention.name,
        output=output,
        attention_in=None,
        query=qkv["q"],
        key=qkv["k"],
        value=qkv["v"],
        attn_out=parts["ln1_post"].name if "ln1_post" in parts else output,
        resid_mid=None if parallel else parts["ln2"].name,
        mlp=mlp_path,
        mlp_out=parts["ln2_post"].name if "ln2_post" in parts else mlp_path,
        mlp_post=mlp_post,
    )


def _path(attention: Any, key: str) -> str | None:
    part = attention.submodules.get(key)
    return None if part is None else f"{attention.name}.{part.name}"


def _blocks(hf: nn.Module) -> Any:
    config: Any = hf.config
    with _quiet_transformers():
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    architecture = type(hf).__name__
    try:
        bridge = build_bridge_config_from_hf(config, architecture, config.model_type, hf.dtype)
        mapping = ArchitectureAdapterFactory.select_architecture_adapter(bridge).component_mapping or {}
    except (ValueError, KeyError, AttributeError, NotImplementedError, ImportError) as error:
        raise NotSupported(
            f"Neither Tunescope nor TransformerLens knows the architecture {architecture} "
            f"({config.model_type}): {str(error).splitlines()[0][:120]}."
        ) from error
    if "blocks" not in mapping or not mapping["blocks"].name:
        raise NotSupported(f"TransformerLens describes {architecture} without decoder blocks.")
    return mapping["blocks"]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Importing TransformerLens sets transformers' logger to ERROR for the process; put it back."""
    logger = logging.getLogger("transformers")
    level = logger.level
    try:
        yield
    finally:
        logger.setLevel(level)
