"""The ways to turn a behaviour off, each as a recipe that can be made again from what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import interventions as iv
from interventions.weightspace.swapping import layer_of
from workbench.errors import UserError
from workbench.models.pair import ModelPair

WAYS = ("update off", "update negated", "update below zero", "direction", "steered away", "layers", "heads", "experts")
"""Names of :data:`Way`s, cheap to explain first."""
SHARES: Mapping[str, float] = {"update off": 0.0, "update negated": -1.0, "update below zero": -0.5}
"""How much of the update is left on the base."""


@dataclass(frozen=True)
class Way:
    """One way as it was found: plain settings and tensors, from which :func:`recipe_of` makes the recipe."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """A recipe and the side of the pair that it acts on."""

    recipe: iv.Recipe
    role: str


def recipe_of(way: Way, pair: ModelPair) -> Placed:
    """The recipe of a way, on the side that computes it without a second copy of the weights where possible.

    Raises:
        UserError: Nobody knows a way of that name.
    """
    match way.name:
        case "update off" | "update negated" | "update below zero":
            return update_scaled(pair, SHARES[way.name])
        case "layers":
            return update_scaled(pair, 1.0, {int(layer): 0.0 for layer in way.settings["layers"]})
        case "direction":
            return Placed(_ablation(way), "tuned")
        case "steered away":
            where = {"strength": way.settings["strength"], "positions": way.settings["positions"]}
            return Placed(iv.Recipe([iv.Offset(way.settings["layer"], way.tensors["vector"], **where)]), "tuned")
        case "heads":
            return Placed(iv.Recipe([iv.HeadScale(dict.fromkeys(way.settings["heads"], 0.0))]), "tuned")
        case "experts":
            return Placed(iv.Recipe([iv.ExpertSwitch(way.settings["experts"], mode="drop_renorm")]), "tuned")
    raise UserError(f"There is no way {way.name!r} to turn a behaviour off; the ways are {', '.join(WAYS)}.")


def _ablation(way: Way) -> iv.Recipe:
    where = {"strength": way.settings["strength"], "positions": way.settings["positions"]}
    units, means = way.tensors["directions"], way.tensors["means"]
    return iv.Recipe([
        iv.ConceptAblation(layer, unit, mean=mean, **where)
        for layer, unit, mean in zip(way.settings["layers"], units, means, strict=True)
    ])  # fmt: skip


def update_scaled(pair: ModelPair, share: float, layers: Mapping[int, float] | None = None) -> Placed:
    """base + share * update, with a factor of its own for some layers.

    A plain adapter is scaled where it is, which costs nothing; of any other update the sum is put into the base.
    """
    by_layer = dict(layers or {})
    if pair.adapter is not None:
        scale = iv.AdapterScale(share, layers=by_layer)
        try:
            scale.validate(pair.tuned)
        except UserError:
            pass  # no plain LoRA: its change is known all the same
        else:
            return Placed(iv.Recipe([scale]), "tuned")
    vector = iv.TaskVector.from_pair(pair)

    def factor(name: str) -> float:
        layer = layer_of(name, pair.base)
        return share * (1.0 if layer is None else by_layer.get(layer, 1.0))

    return Placed(iv.Recipe([vector.by_name(factor).graft(pair.base)]), "base")


def update_by_chance(pair: ModelPair, share: float, seed: int) -> Placed:
    """The control of :func:`update_scaled`: what it takes from the tuned model is taken with random signs instead, so
    that as much of the weights moves."""
    vector = iv.TaskVector.from_pair(pair)
    moved = vector + (share - 1.0) * vector.sign_shuffled(seed)
    return Placed(iv.Recipe([moved.graft(pair.base)]), "base")


__all__ = ["SHARES", "WAYS", "Placed", "Way", "recipe_of", "update_by_chance", "update_scaled"]
