"""Where a family outside our table keeps its heads, from the engine's own resolution of an empty model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from workbench.engine.families import FAMILIES, LLAMA, Family, family_of
from workbench.errors import UserError


def resolved_family(config: Mapping[str, Any]) -> Family | None:
    """The paths of a family by its config; None where its heads have no known place.

    Families of our table are looked up; for others a model without weights is built from the config, and resolved as
    the engine resolves a loaded one. Rows of q, k and v are left out where they are fused in a way that is not known.
    """
    kind = str(config.get("model_type", ""))
    if kind in FAMILIES:
        return FAMILIES[kind]
    if not kind:
        return LLAMA
    return _resolved(json.dumps(dict(config), sort_keys=True, default=str))


@lru_cache(maxsize=32)
def _resolved(config: str) -> Family | None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = json.loads(config)
    try:
        from accelerate import init_empty_weights

        made = AutoConfig.for_model(**settings)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(made)
        family = family_of(model)
    except (UserError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None
    apart = len({family.query, family.key, family.value}) == 3
    return family if apart else replace(family, query=None, key=None, value=None)
