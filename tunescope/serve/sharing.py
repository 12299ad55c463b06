"""Which requests may share a step with others, and why the rest run by themselves."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import DynamicCache

from interventions.base import SiteIntervention
from interventions.recipe import Recipe
from tunescope.serve.cache_rows import PLAIN_LAYERS
from workbench.engine.positions import where
from workbench.engine.sites import KINDS
from workbench.models.adapted import AdaptedModel
from workbench.models.generation_settings import of_effect

BY_ROW = frozenset(KINDS) - {"pattern", "router", "expert"}
"""Sites whose value is [row, pos, ...] and that are reached without changing how the whole batch is computed."""


def why_alone(side: AdaptedModel, recipe: Recipe | None) -> str | None:
    """Why a request runs by itself on this side; None: it may share its steps."""
    return _of_model(side) or (None if recipe is None else _of_recipe(recipe, side))


@cache
def _of_model(side: AdaptedModel) -> str | None:
    config = side.inner.config.get_text_config(decoder=True)
    if side.own_generation_config and (names := sorted(of_effect(side.inner))):
        return f"the model's generation config sets {', '.join(names)}"
    layers = DynamicCache(config=config).layers
    if any(type(layer) not in PLAIN_LAYERS for layer in layers):
        return "its cache holds more than keys and values"
    if len(side.hub.geometry.attention_layers) < side.n_layers:
        return "some of its layers have no attention"
    if _scales_with_length(getattr(config, "rope_parameters", None)):
        return "its rotary embedding depends on the longest row"
    return None


def _scales_with_length(rope: Any) -> bool:
    """Whether any rotary setting changes with the length of the text, which a batch would share."""
    if not isinstance(rope, dict):
        return False
    kinds = [rope.get("rope_type"), *(entry.get("rope_type") for entry in rope.values() if isinstance(entry, dict))]
    return bool({"dynamic", "longrope"} & set(kinds))


def _of_recipe(recipe: Recipe, side: AdaptedModel) -> str | None:
    for step in recipe:
        if not isinstance(step, SiteIntervention):
            return f"{step.kind} changes weights or logits, which all rows share"
        if isinstance(step.strength, torch.Tensor):
            return f"{step.kind} has a strength per row"
        if any(where(getattr(step, name)).rows is not None for name in step.scopes):
            return f"{step.kind} names rows"
        other = sorted({site.kind for site, _ in step.changes(side)} - BY_ROW)
        if other:
            return f"{step.kind} acts at {other[0]}, which is computed for the whole batch"
    return None
