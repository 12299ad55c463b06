"""One recipe at several strengths, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from interventions.base import SiteIntervention
from interventions.recipe import Recipe, as_adapted
from interventions.strength import as_strength
from workbench.behaviour.dosing import Dose
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts


def swept(recipe: Recipe, strengths: Sequence[float]) -> Recipe:
    """The recipe with its own strength for each prompt of a batch: entry i times the recipe's for prompt i.

    Raises :class:`NotSupported` for weight-space interventions (rows share the weights) and for recipes that have a
    strength per row already.
    """
    factors = torch.tensor([float(strength) for strength in strengths])
    made = []
    for intervention in recipe:
        if not isinstance(intervention, SiteIntervention):
            raise NotSupported(
                f"{intervention.kind} acts at no site, so all rows of a batch share it: sweep it run by run."
            )
        strength = as_strength(intervention.strength)
        if not isinstance(strength, float):
            raise NotSupported(f"{intervention.kind} has a strength per row already: give one strength to sweep.")
        made.append(replace(intervention, strength=strength * factors))
    return Recipe(made, recipe.made_with)


def dose(recipe: Recipe) -> Dose:
    """The recipe at any strength, for :func:`workbench.behaviour.dose_response`: all strengths as one batch, unless it
    changes weights or has a strength per row already."""
    one_batch = all(
        isinstance(intervention, SiteIntervention) and isinstance(as_strength(intervention.strength), float)
        for intervention in recipe
    )
    return Dose(lambda strength: recipe * strength, partial(swept, recipe) if one_batch else None)


def steered_texts(
    model: Any, recipe: Recipe, prompts: Any, strengths: Sequence[float] = (1.0,), **options: Any
) -> list[list[str]]:
    """Continuations [prompt][strength] under ``recipe`` times each strength.

    ``options`` go to :meth:`AdaptedModel.generate`, which is greedy and adds 64 tokens (``max_new_tokens``) unless told
    otherwise. All strengths of all prompts are one batch, unless the recipe changes weights: then there is a run per
    strength.
    """
    adapted, rows = as_adapted(model), Prompts.of(prompts)
    if not strengths:
        raise UserError("There is no strength to steer with: give at least one number.")
    if any(not isinstance(intervention, SiteIntervention) for intervention in recipe):
        runs = [_texts(adapted, recipe * strength, rows, options) for strength in strengths]
        return [list(texts) for texts in zip(*runs, strict=True)]
    if len(strengths) == 1:
        return [[text] for text in _texts(adapted, recipe * strengths[0], rows, options)]
    many = Prompts([row for row in rows for _ in strengths])
    texts = _texts(adapted, swept(recipe, [*strengths] * len(rows)), many, options)
    return [texts[start : start + len(strengths)] for start in range(0, len(texts), len(strengths))]


def _texts(model: AdaptedModel, recipe: Recipe, prompts: Prompts, options: dict[str, Any]) -> list[str]:
    with recipe.applied(model):
        return model.generate(prompts, **options)
