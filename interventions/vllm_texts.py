"""Texts from vLLM with a recipe per request: many requests in one batch, each steered by its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interventions.recipe import Recipe, site_hooks
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.vllm.layout import check_site
from workbench.vllm.running import VllmEngine


def vllm_ids(
    engine: VllmEngine, model: AdaptedModel, prompts: Any, recipes: Sequence[Recipe | None], **sampling: Any
) -> list[list[int]]:
    """New token ids of every prompt, prompt i under recipe i alone.

    Args:
        engine: vLLM, opened on the files that ``model`` was loaded from.
        model: Our model of the side that writes; of its weights nothing is used.
        prompts: As :meth:`AdaptedModel.generate` takes them.
        recipes: One for each prompt; None leaves it unsteered.
        sampling: Goes to ``vllm.SamplingParams``; greedy unless told.

    Raises:
        NotSupported: A recipe holds what this engine cannot do; the sentence says which part, and what would do.
        UserError: There are not as many recipes as prompts.

    Example:
        ``vllm_ids(VllmEngine(pair.base.origin), pair.tuned, ["Hello"], [recipe * 0.5], max_tokens=32)``
    """
    rows = Prompts.of(prompts)
    if len(rows) != len(recipes):
        raise UserError(f"There are {len(recipes)} recipes for {len(rows)} prompts: give one for each, or None.")
    for recipe in {id(recipe): recipe for recipe in recipes if recipe is not None}.values():
        check_held(recipe, model)
    hooks = {row: site_hooks(recipe, model) for row, recipe in enumerate(recipes) if recipe is not None}
    ids = encode(rows, model.tokenizer, model.max_positions)
    return engine.run(model.role, ids, model, hooks, **sampling)


def check_held(recipe: Recipe, model: AdaptedModel) -> None:
    """Raise :class:`UserError` unless vLLM can hold every part of ``recipe``."""
    recipe.check(model)
    for hook in recipe.row_hooks(model):
        check_site(hook.site)
