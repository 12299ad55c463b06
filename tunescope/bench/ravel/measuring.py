"""Cause, Isolate and Disentangle of subspaces (RAVEL, Huang et al. 2024), on cities that were not fitted on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product
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
    Find,
    States,
    class_means,
    differing,
    entity_states,
    every_dimension,
    principal,
    random,
    swapped,
    trained,
)
from workbench.engine.positions import Where
from workbench.finished_batches import batch, scope
from workbench.models.adapted import AdaptedModel

RANK = 16
PAIRS = 32
"""Exchanges per attribute and template."""


def measure(
    model: AdaptedModel, attributes: list[str], layer: int, seeds: int, say: Callable[[str], None], *,
    training: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """One line per attribute, method and seed (of the split of cities, the pairs and the training)."""
    lines: list[dict[str, Any]] = []
    with scope(lambda: ["bench ravel", model.identity.hash, str(model.dtype), layer]):
        there = known(model)
        say(f"{model.name} knows {len(there.cities)} cities")
        states = cache(lambda template: entity_states(model, there, template, layer))
        for attribute, seed in product(attributes, range(seeds)):
            for name, find in methods(seed, training=training).items():
                score = partial(_line, model, there, attribute, layer, seed, find, states)
                scores = batch("exchanges", [attribute, name, seed], score)
                lines.append({"attribute": attribute, "method": name, **scores})
                say(f"{attribute}, seed {seed}, {name}: {scores['disentangle']:.2f}")
    return pd.DataFrame(lines)


def _line(
    model: AdaptedModel, there: Known, attribute: str, layer: int, seed: int, find: Find, states: States
) -> dict[str, Any]:
    """A subspace fitted on half of the cities and scored on the others."""
    order = np.random.default_rng(seed).permutation(len(there.cities)).tolist()
    fitting, held = order[: len(order) // 2], order[len(order) // 2 :]
    start = time.process_time()
    basis = find(model, there.of(fitting), attribute, lambda template: states(template)[fitting], layer)
    scores = _scores(model, there.of(held), attribute, layer, basis, seed, lambda template: states(template)[held])
    return {"rank": len(basis), "seed": seed, "layer": layer, **scores, "seconds": time.process_time() - start}


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
    cities = len(data()["cities"])
    known_by = sum(len(every) for every in data()["templates"].values()) * cities
    tests = sum(len(templates(template, test=True)) for template in data()["templates"])
    scored = len(methods(0)) * tests * (cities + PAIRS + cities // 2)
    fitted = 3 * STEPS * BATCH
    return pd.DataFrame([
        {"attribute": name, "forward": known_by * (number == 0) + seeds * (scored + fitted), "backward": seeds * fitted}
        for number, name in enumerate(attributes)
    ])  # fmt: skip


def methods(seed: int, *, training: bool = True) -> dict[str, Find]:
    """Name -> how a subspace is found."""
    every = {
        "all dimensions": every_dimension,
        "random": random(RANK, seed),
        "principal components": principal(RANK),
        "class means": class_means(RANK),
    }
    if training:
        every |= {"DAS": trained(RANK, seed, isolating=False), "multi-task DAS": trained(RANK, seed, isolating=True)}
    return every


def _scores(
    model: AdaptedModel, held: Known, attribute: str, layer: int, basis: Basis, seed: int, states: States
) -> dict[str, float]:
    """``cause``: the other city's value is said; ``isolate``: the own value of other attributes; ``removed`` and
    ``kept``: the same two when the subspace is set to its mean instead (ConceptAblation)."""
    cause, isolate, removed, retained = [], [], [], []
    every = differing(held, attribute)
    pairs = [every[number] for number in np.random.default_rng(seed).permutation(len(every))[:PAIRS]]
    for about, own in held.answers.items():
        for template in held.testing[about]:
            exchanged = partial(swapped, model, held, template, layer, basis=basis, states=states(template))
            says = _argmax(exchanged, pairs)
            left = _ablated(model, held, template, layer, basis, states(template))
            if about == attribute:
                cause.append((says == own[[other for _, other in pairs]]).float().mean())
                removed.append((left != own).float().mean())
            else:
                isolate.append((says == own[[before for before, _ in pairs]]).float().mean())
                retained.append((left == own).float().mean())
    means = {name: float(torch.stack(values).mean()) for name, values in
             (("cause", cause), ("isolate", isolate), ("removed", removed), ("kept", retained))}  # fmt: skip
    return {**means, "disentangle": (means["cause"] + means["isolate"]) / 2}


def _argmax(run: Callable[[list[tuple[int, int]]], torch.Tensor], pairs: list[tuple[int, int]]) -> torch.Tensor:
    parts = [run(pairs[start : start + BATCH]).argmax(-1).cpu() for start in range(0, len(pairs), BATCH)]
    return torch.cat(parts)


def _ablated(
    model: AdaptedModel, held: Known, template: str, layer: int, basis: Basis, states: torch.Tensor
) -> torch.Tensor:
    back = held.ends[template][0]
    ablation = iv.ConceptAblation(layer, basis, mean=states.mean(0), positions=Where(at=back))
    with iv.Recipe([ablation]).applied(model):
        alone = [(city, city) for city in range(len(held.cities))]
        return _argmax(lambda some: _last(model, held, template, [city for city, _ in some]), alone)


def _last(model: AdaptedModel, held: Known, template: str, cities: list[int]) -> torch.Tensor:
    logits = model.forward(held.batch(template, cities), logits="last")
    assert logits is not None
    return logits[:, -1]
