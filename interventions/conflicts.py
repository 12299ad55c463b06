"""Interventions of one recipe that cannot both have their way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from interventions.base import Intervention, SiteIntervention
from interventions.claims import Claim
from workbench.engine.positions import PositionSpec, Where, where
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

_SHARED = 0.99
"""Cosine from which two subspaces are said to share a direction."""


def check_conflicts(interventions: Sequence[Intervention], model: AdaptedModel) -> None:
    """Raise :class:`UserError` naming two interventions that contradict each other."""
    for intervention in interventions:
        if isinstance(intervention, SiteIntervention):
            intervention.validate_beside(interventions, model)
    claims = [
        (place, intervention, claim)
        for place, intervention in enumerate(interventions)
        if isinstance(intervention, SiteIntervention) and not intervention.neutral
        for claim in intervention.claims(model)
    ]
    for (i, a, first), (j, b, second) in combinations(claims, 2):
        if a.when is not None and b.when is not None and a.when != b.when:
            continue  # nobody knows whether both gates are ever open at once
        if i != j and _clash(first, second) and a != b and may_overlap(a.positions, b.positions):
            raise UserError(
                f"{a.kind} (number {i} of the recipe) {first.what} and {b.kind} (number {j}) {second.what} at "
                f"{first.site.name} on the same positions: they contradict; leave one out or part their positions."
            )


def _clash(a: Claim, b: Claim) -> bool:
    if a.site != b.site or a.what != b.what:
        return False
    if a.parts and b.parts and not a.parts & b.parts:
        return False
    if a.basis is None or b.basis is None:
        return True
    return bool((a.basis.double() @ b.basis.double().T).svd().S.max() > _SHARED)


def may_overlap(a: PositionSpec | Where, b: PositionSpec | Where) -> bool:
    """Whether two scopes surely share positions: the same words, or one of them everywhere. Unsure counts as no."""
    first, second = where(a), where(b)
    if first.rows is not None and second.rows is not None:
        if not any(x and y for x, y in zip(first.rows, second.rows, strict=False)):
            return False
    if first.tokens is not None and second.tokens is not None and not set(first.tokens) & set(second.tokens):
        return False
    return bool(_words(first.at) & _words(second.at)) or "all" in (first.at, second.at) or _same(first.at, second.at)


def _words(spec: PositionSpec) -> set[str]:
    return {word.strip() for word in spec.split(" - ")[0].split("+")} if isinstance(spec, str) else set()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Iterable) and isinstance(b, Iterable) and not isinstance(a, str) and not isinstance(b, str):
        return bool(set(a) & set(b))
    return bool(a == b)
