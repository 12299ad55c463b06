"""The members of a series as a probe is given them: a series, or a base with checkpoints and a final model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.weightspace.lazy_tensors import split
from probes.weights.naming import Place, place_of
from probes.weights.sources import Factors, Opened, open_weights
from workbench.errors import UserError
from workbench.models.series import ModelSeries, checked_scores, load_series
from workbench.typing import Tensor


@dataclass(frozen=True)
class Members:
    """What :func:`open_weights` takes for the base and for each member, with names and scores (NaN: none)."""

    base: Any
    models: list[Any]
    names: list[str]
    scores: list[float]
    notes: tuple[str, ...] = ()

    def opened(self) -> Iterator[tuple[str, Opened]]:
        """Each member beside the base, opened when it is its turn."""
        for name, model in zip(self.names, self.models, strict=True):
            yield name, open_weights(self.base, model)


def members_of(
    base: Any, tuned: Any, checkpoints: Sequence[str], scores: Sequence[float] | None, *, fewest: int = 2
) -> Members:
    """``checkpoints`` and then ``tuned``, or the members of a series given as ``base``.

    Raises :class:`UserError` for fewer than ``fewest`` members and for scores that do not match.
    """
    if isinstance(base, ModelSeries):
        members = Members(
            base.base, [member.source for member in base.members], base.names,
            base.scores if scores is None else list(scores), base.notes,
        )  # fmt: skip
    else:
        below, final = (
            (base, tuned) if tuned is not None else (getattr(base, "base", base), getattr(base, "tuned", None))
        )
        series = load_series(_bare(below), list(checkpoints)) if checkpoints else None
        listed = [] if series is None else [member.source for member in series.members]
        names = [] if series is None else series.names
        last = [] if final is None else [final]
        final_name = "tuned" if "tuned" not in names else "tuned (the final model)"
        values = [math.nan] * (len(listed) + len(last)) if scores is None else list(scores)
        members = Members(
            below, [*listed, *last], [*names, *([final_name] if last else [])], values,
            () if series is None else series.notes,
        )  # fmt: skip
    if len(members.models) < fewest:
        raise UserError(
            f"A series needs {fewest} members at least and has {len(members.models)}: name more with checkpoints, or "
            "give a series from workbench.load_series."
        )
    if len(members.scores) != len(members.models):
        raise UserError(
            f"There are {len(members.scores)} scores for {len(members.models)} members ({', '.join(members.names)}): "
            "give one each, the last for the final model."
        )
    return replace(members, scores=checked_scores(members.scores, members.names))


def _bare(model: Any) -> Any:
    """The model under a pair's view and under its adapter."""
    held = getattr(model, "hf", model)
    return held.get_base_model() if hasattr(held, "get_base_model") and hasattr(held, "peft_config") else held


@dataclass(frozen=True)
class Moved:
    """One tensor of a member: squared norms of the change and of the base's tensor."""

    name: str
    place: Place
    change2: float
    base2: float
    size: int


def moved(opened: Opened, base_norms: dict[str, tuple[float, int]]) -> Iterator[Moved]:
    """Every tensor inside the layers that both have, one at a time; a LoRA's product is never formed.

    ``base_norms`` is filled on the first call and spares the base's norms on the others.
    """
    for name in opened.base:
        place = place_of(name)
        if place.layer is None or not (name in opened.tuned or name in opened.factors):
            continue
        low_rank = name in opened.factors
        before = None if low_rank and name in base_norms else opened.base[name]()
        if before is not None and not before.is_floating_point():
            continue
        if before is not None and name not in base_norms:
            base_norms[name] = (float(before.detach().double().square().sum()), before.numel())
        base2, size = base_norms[name]
        if low_rank:
            factors = opened.factors[name]
            if factors.up.shape[0] * factors.down.shape[1] != size:
                raise UserError(
                    f"A member changes {name} by [{factors.up.shape[0]}, {factors.down.shape[1]}], and the base has "
                    f"{size} entries there: it is an adapter of another model; give its own base."
                )
            yield Moved(name, place, factored_norm2(factors), base2, size)
        elif before is not None:
            yield Moved(name, place, float(difference(opened, name, before).double().square().sum()), base2, size)


def difference(opened: Opened, name: str, before: Tensor | None = None) -> Tensor:
    """tuned - base of one tensor, in float32 or wider; the product of a LoRA's factors."""
    if name in opened.factors:
        factors = opened.factors[name]
        product = factors.up @ factors.down
        return product.T if opened.layout.turned(place_of(name).module, product.ndim) else product
    after, base, wide = _both(opened, name, before)
    made = torch.empty(after.shape, dtype=wide, device=after.device)
    for part, piece, below in zip(split(made), split(after), split(base), strict=True):
        torch.sub(piece.to(wide), below, out=part)  # a whole operand of another dtype would be copied whole
    return made


def difference_pieces(opened: Opened, name: str) -> Iterator[Tensor]:
    """The entries of :func:`difference` in order, a piece at a time; of a whole model a piece is all that is made."""
    if name in opened.factors:
        yield from split(difference(opened, name))
        return
    after, base, wide = _both(opened, name)
    for piece, before in zip(split(after), split(base), strict=True):
        yield piece.to(wide, copy=True).sub_(before)


def _both(opened: Opened, name: str, before: Tensor | None = None) -> tuple[Tensor, Tensor, torch.dtype]:
    """A tensor of the tuned model and of the base, and the dtype for their difference."""
    base = (opened.base[name]() if before is None else before).detach()
    after = opened.tuned[name]().detach().to(base.device)
    if after.shape != base.shape:
        raise UserError(f"{name} is {list(after.shape)} in a member and {list(base.shape)} in the base: another model.")
    return after, base, torch.promote_types(torch.promote_types(base.dtype, after.dtype), torch.float32)


def factored_norm2(factors: Factors) -> float:
    """||up @ down||^2 from the two Gram matrices."""
    up, down = factors.up.double(), factors.down.double()
    return max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0)
