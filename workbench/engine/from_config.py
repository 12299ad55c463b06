"""Where a model keeps its heads, from its config alone: built on the meta device, so no weight is read or held."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.pytorch_utils import Conv1D

from workbench.engine.families import Family, submodule
from workbench.engine.geometry import in_features
from workbench.engine.resolving import family_of
from workbench.errors import NotSupported


@dataclass(frozen=True)
class HeadMap:
    """The family, its numbers of heads, and whether its attention weights are Conv1D, kept as [into, out]."""

    family: Family
    n_heads: int
    n_kv_heads: int
    transposed: bool


def class_for(config: Any) -> Any:
    """The auto class that makes the language model of a transformers config.

    That is ``AutoModelForCausalLM``, or for models of images or sound that it does not know (LLaVA, Qwen-VL, Voxtral)
    ``AutoModelForMultimodalLM``, whose models run on text alone too.
    """
    known, multimodal = AutoModelForCausalLM._model_mapping, AutoModelForMultimodalLM._model_mapping
    text = config.get_text_config(decoder=True)
    if type(config) in known or type(config) not in multimodal or getattr(text, "is_encoder_decoder", False):
        return AutoModelForCausalLM
    return AutoModelForMultimodalLM


def head_map(config: Mapping[str, Any]) -> HeadMap:
    """The engine's own names of the parts, for a config.json or a config's ``to_dict()``.

    Raises:
        NotSupported: The config is of no causal language model, or its heads have no known place.
    """
    answer = _resolved(json.dumps(dict(config), sort_keys=True, default=str))
    if isinstance(answer, str):
        raise NotSupported(answer)
    return answer


@lru_cache(maxsize=32)
def _resolved(text: str) -> HeadMap | str:
    config = json.loads(text)
    kind = config.pop("model_type", "")
    try:
        with torch.device("meta"):
            made = AutoConfig.for_model(kind, **config)
            hf = class_for(made).from_config(made)
        family = family_of(hf)
        return _heads(hf, family)
    except NotSupported as error:
        return str(error)
    except (ValueError, AttributeError, KeyError, ImportError, NotImplementedError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return f"No causal language model can be laid out from a config of type {kind!r}: {reason}"


def _heads(hf: Any, family: Family) -> HeadMap:
    """From the layers that have attention: the first may be of another kind (Jamba, Qwen3-Next)."""
    text = hf.config.get_text_config()
    outputs = [submodule(layer, family.output) for layer in submodule(hf, family.layers)]
    n_heads, output = (
        getattr(text, "num_attention_heads", None) or 0,
        next((output for output in outputs if output is not None), None),
    )
    if output is None or not n_heads or in_features(output) % n_heads:
        raise NotSupported(f"{type(hf).__name__} does not keep its heads side by side in one output projection.")
    return HeadMap(family, n_heads, getattr(text, "num_key_value_heads", None) or n_heads, isinstance(output, Conv1D))
