"""The control of a recipe: random stand-ins with as many heads, experts or dimensions, in the same layers, of the same
norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import interventions as iv
from interventions.checks import Label
from probes.experts.counting import count_experts
from probes.matching import matched_cells
from workbench.engine.sites import parse_label
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts
from workbench.prompts.encode import encode
from workbench.stats.controls import MIN_DRAWS, random_directions, random_subspaces, random_units

Place = tuple[int, int]


def stand_ins(
    recipe: iv.Recipe, model: AdaptedModel, prompts: Any, draws: int = MIN_DRAWS, seed: int = 0
) -> list[iv.Recipe]:
    """``draws`` recipes that differ from ``recipe`` in what was chosen and in nothing else, as the control of
    ``wb.behaviour_diff(..., controls={name: probes.stand_ins(...)})``.

    Directions become random ones of the same norm (a subspace one of the same rank, set to the same coordinates);
    heads other heads of their layers, experts other experts of their layers, those nearest in how often ``prompts``
    select them. Interventions of other packages say theirs in a method ``stand_ins``. Empty where a recipe holds
    something that has no such stand-in (a change of weights, attention of all heads): then there is no control.
    """
    if not draws:
        return []
    rows, columns = Prompts.of(prompts), []
    for number, intervention in enumerate(recipe):
        recipes = _drawn(intervention, model, rows, draws, seed + number)
        if recipes is None:
            return []
        columns.append(recipes)
    return [iv.Recipe(list(row)) for row in zip(*columns, strict=True)]


def _drawn(intervention: Any, model: AdaptedModel, prompts: Prompts, draws: int, seed: int) -> list[Any] | None:
    match intervention:
        case iv.Offset():
            return [
                replace(intervention, vector=v) for v in random_directions(intervention.vector, draws=draws, seed=seed)
            ]
        case iv.Clamp():
            return [
                replace(intervention, direction=v)
                for v in random_directions(intervention.direction, draws=draws, seed=seed)
            ]
        case iv.SubspaceKnob():
            drawn = random_subspaces(intervention.direction.float(), draws=draws, seed=seed)
            return [replace(intervention, direction=basis) for basis in drawn]
        case iv.ConceptAblation():
            drawn = random_subspaces(intervention.directions.float(), draws=draws, seed=seed)
            return [replace(intervention, directions=basis) for basis in drawn]
        case iv.HeadScale():
            return [
                replace(intervention, scales=scales) for scales in _other_heads(intervention.scales, model, draws, seed)
            ]
        case iv.HeadOffset():
            return _random_offsets(intervention, model, draws, seed)
        case iv.AttentionScale(gamma=Mapping() as gammas):
            others: list[Any] = _other_heads(gammas, model, draws, seed)
            return [replace(intervention, gamma=other, heads=None) for other in others]
        case iv.AttentionScale(heads=heads) if heads is not None:
            unlabelled = {head: None for head in heads}
            return [replace(intervention, heads=list(other)) for other in _other_heads(unlabelled, model, draws, seed)]
        case iv.SinkHandover(heads=heads) if heads is not None:
            others = _other_heads(dict.fromkeys(heads), model, draws, seed)
            return [replace(intervention, heads=list(other)) for other in others]
        case iv.ExpertSwitch():
            return _other_experts(intervention, model, prompts, draws, seed)
    drawn_by_itself: list[Any] | None = intervention.stand_ins(model, draws, seed)
    return drawn_by_itself


def _other_heads(by_head: Any, model: AdaptedModel, draws: int, seed: int) -> list[dict[str, Any]]:
    """The same values for other heads of the same layers."""
    places = [_place(label) for label in by_head]
    drawn = random_units(places, [model.n_heads] * model.n_layers, draws=draws, seed=seed)
    order = sorted(range(len(places)), key=lambda number: places[number])
    values = [list(by_head.values())[number] for number in order]
    return [{f"L{layer}H{head}": value for (layer, head), value in zip(draw, values, strict=True)} for draw in drawn]


def _random_offsets(offset: iv.HeadOffset, model: AdaptedModel, draws: int, seed: int) -> list[Any]:
    made = []
    for number, vectors in enumerate(_other_heads(offset.vectors, model, draws, seed)):
        random = {
            head: random_directions(vector, draws=draws, seed=seed + 1000 * place)[number]
            for place, (head, vector) in enumerate(vectors.items())
        }
        made.append(replace(offset, vectors=random))
    return made


def _other_experts(chooser: iv.ExpertSwitch, model: AdaptedModel, prompts: Prompts, draws: int, seed: int) -> list[Any]:
    """Off and on are drawn together, so that no expert is both."""
    off, on = [[_place(label) for label in labels] for labels in (chooser.off, chooser.on)]
    use = expert_use(model, prompts)
    if 2 * (len(off) + len(on)) > len(use):
        return []
    drawn = matched_cells([*off, *on], use, draws, seed)
    names = [[f"L{layer}E{expert}" for layer, expert in cells] for cells in drawn]
    made = [replace(chooser, off=cells[: len(off)], on=cells[len(off) :]) for cells in names]
    try:
        for switch in made:
            switch.validate(model)
    except UserError:
        return []  # so many of a layer cannot be switched at once, which other layers' experts would stand in for
    return made


@torch.no_grad()
def expert_use(model: AdaptedModel, prompts: Prompts) -> dict[Place, float]:
    """(layer, expert) -> share of the prompts' tokens that select it."""
    rows = encode(prompts, model.tokenizer, model.max_positions)
    (counts,) = count_experts(model, rows, [[np.ones(len(row), dtype=bool) for row in rows]])
    shares = counts.counts.sum(0) / counts.tokens.sum()
    return {
        (layer, expert): float(shares[place, expert])
        for place, layer in enumerate(counts.layers)
        for expert in range(shares.shape[1])
    }


def _place(label: Label) -> Place:
    if isinstance(label, tuple):
        return label
    layer, _, number = parse_label(label)
    assert number is not None
    return layer, number
