"""A recipe for one row of a batch: its hooks see that row as a run of its own would show it to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from interventions.base import SiteIntervention
from interventions.recipe import Recipe
from workbench.engine.context import ForwardContext, Generation
from workbench.engine.hub import SiteHook
from workbench.models.adapted import AdaptedModel
from workbench.typing import Int, Tensor


def hooks_of(recipe: Recipe | None, model: AdaptedModel) -> list[SiteHook]:
    """The hooks of a recipe that acts at sites alone, in its order. What a gate has seen lives as long as they do."""
    steps: Iterable[Any] = () if recipe is None else recipe
    return [hook for step in steps if isinstance(step, SiteIntervention) for hook in step.hooks(model)]


def row_context(ids: Int[Tensor, "1 pos"], start: int, prompt: int, model: AdaptedModel) -> ForwardContext:
    """The forward pass of one row without padding: ``start`` tokens before it, ``prompt`` of all of them the prompt."""
    return ForwardContext(
        batch=1,
        start=start,
        length=ids.shape[1],
        device=ids.device,
        input_ids=ids,
        attention_mask=None,
        generation=Generation(columns=prompt, rows=1, attention_mask=None),
        template=model.hub.template,
    )


def for_row(hook: SiteHook, row: int, context: ForwardContext) -> SiteHook:
    """``hook`` for one row of a batch whose new columns are all real; the other rows are left bit for bit."""

    def change(value: Tensor, _ctx: ForwardContext) -> Tensor | None:
        new = hook.fn(value[row : row + 1], context)
        if new is None or len(value) == 1:
            return new
        whole = value.clone()
        whole[row : row + 1] = new
        return whole

    return SiteHook(hook.site, change, edit=hook.edit)
