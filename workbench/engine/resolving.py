"""Which family a model is of: of our table, or found by its modules or TransformerLens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from workbench.engine.families import FAMILIES, MLA, NEOX, Family, submodule
from workbench.engine.foreign import foreign_family
from workbench.errors import NotSupported


def family_of(hf: nn.Module) -> Family:
    """The family of a Hugging Face causal language model.

    Raises :class:`NotSupported` when neither our table nor TransformerLens knows the architecture.
    """
    config: Any = hf.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        family = foreign_family(hf)
    layers = submodule(hf, family.layers)
    if layers is None or len(list(layers.children())) == 0:
        raise NotSupported(
            f"No decoder layers at {family.layers!r} in this {type(hf).__name__}: give a causal language model "
            "(AutoModelForCausalLM)."
        )
    if family is MLA and submodule(layers, f"0.{family.query}") is None:
        family = replace(MLA, query="self_attn.q_proj")
    if family is NEOX and not getattr(config, "use_parallel_residual", True):
        family = replace(NEOX, resid_mid="post_attention_layernorm")
    return family
