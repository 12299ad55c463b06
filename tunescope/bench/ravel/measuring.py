"""Cause, Isolate and Disentangle of subspaces (RAVEL, Huang et al. 2024), on cities that were not fitted on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

import interventions as iv
from tunescope.bench.ravel.entities import Known, data, known, templates
from tunescope.bench.ravel.subspaces import (
    BATCH,
    STEPS,
    Basis,
    class_means,
    entity_states,
    every_dimension,
    principal,
    random,
    swapped,
    trained,
)
from workbench.engine.positions import Where
from workbench.models.adapted import AdaptedModel

RANK = 16
PAIRS = 32
"""Exchanges per attribute and template."""
PUBLISHED = "multi-task DAS before DAS before principal components (Huang et al. 2024)"


def measure(
    model: AdaptedModel, attributes: list[str], layer: int, seeds: int, say: Callable[[str], None], *,
    training: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """One line per attribute, method and seed (of the split of cities, the pairs and the training)."""
    there = known(model)
    say(f"{model.name} knows {len(there.cities)} cities")
    lines: list[dict[str, Any]] = []
    states_of = cache(lambda template: entity_states(model, there, template, layer))
    for attribute in attributes:
        states = states_of(templates(attribute, test=False)[0])
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(there.cities)).tolist()
            fitting, held = order[: len(order) // 2], order[len(order) // 2 :]
            for name, find in _methods(seed, training).items():
                start = time.perf_counter()
                basis = find(model, _of(there, fitting), attribute, states[fitting], layer, list(range(len(fitting))))
                scores = _scores(model, there, attribute, layer, held, basis, seed, states_of)
                lines.append({"attribute": attribute, "method": name, "rank": len(basis), "seed": seed,
                              "layer": layer, **scores, "seconds": time.perf_counter() - start})  # fmt: skip
                say(f"{attribute}, seed {seed}, {name}: {scores['disentangle']:.2f}")
    return pd.DataFrame(lines)


def summarised(lines: pd.DataFrame) -> pd.DataFrame:
    """Means over attributes and seeds, with the least and the most of the seeds' means."""
    rows = []
    for name, part in lines.groupby("method", sort=False):
        row: dict[str, Any] = {"method": name, "rank": int(part["rank"].max()), "seeds": part["seed"].nunique()}
        for measure in ("cause", "isolate", "disentangle", "removed", "kept"):
            by_seed = part.groupby("seed")[measure].mean()
            row |= {measure: by_seed.mean(), f"{measure}_least": by_seed.min(), f"{measure}_most": by_seed.max()}
        rows.append(row)
    return pd.DataFrame(rows)


def cost(attributes: list[str], seeds: int) -> pd.DataFrame:
    """Per attribute, over all seeds: passes of one prompt at most, as if the model knew every city."""
    cities, methods = len(data()["cities"]), len(_methods(0, training=True))
    known_by = sum(len(every) for every in data()["templates"].values()) * cities
    tests = sum(len(templates(template, test=True)) for template in data()["templates"])
    scored = methods * tests * (cities + PAIRS + cities // 2)
    fitted = 2 * STEPS * BATCH
    return pd.DataFrame([
        {"attribute": name, "forward": known_by * (number == 0) + seeds * (scored + fitted), "backward": seeds * fitted}
        for number, name in enumerate(attributes)
    ])  # fmt: skip


def _methods(seed: int, training: bool) -> dict[str, Callable[..., Basis]]:
    found: dict[str, Callable[..., Basis]] = {
        "all dimensions": every_dimension,
        "random": random(RANK, seed),
        "principal components": principal(RANK),
        "class means": class_means(RANK),
    }
    if training:
        found |= {"DAS": trained(RANK, seed, isolating=False), "multi-task DAS": trained(RANK, seed, isolating=True)}
    return found


def _of(there: Known, cities: list[int]) -> Known:
    """What is known of some cities alone."""
    return Known(
        tuple(there.cities[city] for city in cities),
        {name: [rows[city] for city in cities] for name, rows in there.ids.items()},
        {name: [rows[city] for city in cities] for name, rows in there.ends.items()},
        {name: tokens[cities] for name, tokens in there.answers.items()},
        {name: [values[city] for city in cities] for name, values in there.values.items()},
    )


def _scores(
    model: AdaptedModel, there: Known, attribute: str, layer: int, held: list[int], basis: Basis, seed: int,
    states_of: Callable[[str], torch.Tensor],
) -> dict[str, float]:  # fmt: skip
    """``cause``: the other city's value is said; ``isolate``: the own value of other attributes; ``removed`` and
    ``kept``: the same two when the subspace is set to its mean instead (ConceptAblation)."""
    cause, isolate, removed, kept = [], [], [], []
    for about in there.answers:
        for template in templates(about, test=True):
            states = states_of(template)
            pairs = _pairs(there, attribute, held, seed)
            says = _argmax(lambda some, t=template, s=states: swapped(model, there, t, layer, some, basis, s), pairs)  # type: ignore[misc]
            left = _ablated(model, there, template, layer, held, basis, states)
            own = there.answers[about]
            if about == attribute:
                cause.append((says == own[[b for _, b in pairs]]).float().mean())
                removed.append((left != own[held]).float().mean())
            else:
                isolate.append((says == own[[a for a, _ in pairs]]).float().mean())
                kept.append((left == own[held]).float().mean())
    found = {name: float(torch.stack(values).mean()) for name, values in
             (("cause", cause), ("isolate", isolate), ("removed", removed), ("kept", kept))}  # fmt: skip
    return {**found, "disentangle": (found["cause"] + found["isolate"]) / 2}


def _pairs(there: Known, attribute: str, held: list[int], seed: int) -> list[tuple[int, int]]:
    """Pairs of held-out cities that differ in the attribute."""
    every = [(a, b) for a in held for b in held if there.answers[attribute][a] != there.answers[attribute][b]]
    order = np.random.default_rng(seed).permutation(len(every))[:PAIRS]
    return [every[number] for number in order]


def _argmax(run: Callable[[list[tuple[int, int]]], torch.Tensor], pairs: list[tuple[int, int]]) -> torch.Tensor:
    parts = [run(pairs[start : start + BATCH]).argmax(-1).cpu() for start in range(0, len(pairs), BATCH)]
    return torch.cat(parts)


def _ablated(
    model: AdaptedModel, there: Known, template: str, layer: int, held: list[int], basis: Basis, states: torch.Tensor
) -> torch.Tensor:
    back = there.ends[template][held[0]]
    ablation = iv.ConceptAblation(layer, basis, mean=states.mean(0), positions=Where(at=back))
    with iv.Recipe([ablation]).applied(model):
        return _argmax(lambda some: _last(model, there, template, [a for a, _ in some]), [(one, one) for one in held])


def _last(model: AdaptedModel, there: Known, template: str, cities: list[int]) -> torch.Tensor:
    logits = model.forward(there.batch(template, cities), logits="last")
    assert logits is not None
    return logits[:, -1]
