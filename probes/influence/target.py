"""The direction of a recipe as what training rows are asked about."""

from __future__ import annotations

from pathlib import Path

from interventions.checks import resolved
from interventions.clamp import Clamp
from interventions.concept_ablation import ConceptAblation
from interventions.exchange.reading import load_recipe
from interventions.offset import Offset
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.typing import Float, Tensor


def projection_target(pair: ModelPair, file: str | Path) -> tuple[int, Float[Tensor, " d_model"]]:
    """Layer and unit direction of the first part of a recipe file that has one direction of the residual stream.

    Raises :class:`UserError` where no part has, or its width is not the model's.
    """
    recipe = load_recipe(Path(file))
    recipe.check(pair.tuned)
    for intervention in recipe:
        if isinstance(intervention, Offset | Clamp | ConceptAblation) and intervention.site == "resid_post":
            direction = _direction(intervention)
            if direction is not None:
                return resolved(pair.tuned, intervention.layer), direction / direction.norm().clamp_min(1e-12)
    raise UserError(
        f"{file} holds no single direction at resid_post (an offset, a clamp, or an ablation of one): give such "
        "a recipe."
    )


def _direction(intervention: Offset | Clamp | ConceptAblation) -> Float[Tensor, " d_model"] | None:
    if isinstance(intervention, ConceptAblation):
        return intervention.directions[0].detach().float() if len(intervention.directions) == 1 else None
    return (intervention.vector if isinstance(intervention, Offset) else intervention.direction).detach().float()
