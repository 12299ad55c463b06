"""Heads grouped by the place they act at, and random groups of the same sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probes.paths.ablation import EVERYWHERE, Part
from probes.paths.places import Head, Place, head_of, label_of
from workbench.argument_checks import check_subject
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

Heads = Sequence[str] | Mapping[Place, Sequence[str]]
"""Labels, at every position; or place -> labels."""


def sides_of(subject: Any) -> dict[str, AdaptedModel]:
    """Both models of a pair, or the one model, by role."""
    check_subject(subject)
    if hasattr(subject, "base") and hasattr(subject, "tuned"):
        return {"base": subject.base, "tuned": subject.tuned}
    return {subject.role: subject}


def parts_of(heads: Heads, model: AdaptedModel) -> list[Part]:
    """(place, head) of each label, without repeats. Raises :class:`UserError` for none and for unknown heads."""
    groups = heads if isinstance(heads, Mapping) else {EVERYWHERE: heads}
    parts = [(place, head_of(label, model)) for place, labels in groups.items() for label in labels]
    if not parts:
        raise UserError("The circuit is empty: give labels of heads such as ['L3H5'], or {'last': ['L3H5']}.")
    return list(dict.fromkeys(parts))


def random_parts(parts: Sequence[Part], model: AdaptedModel, draws: int, seed: int) -> list[list[Part]]:
    """As many heads at each place, drawn without replacement from all heads of the model."""
    rng = np.random.default_rng(seed)
    every: list[Head] = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    counts = Counter(place for place, _ in parts)
    return [
        [
            (place, every[index])
            for place, count in counts.items()
            for index in rng.choice(len(every), count, replace=False)
        ]
        for _ in range(draws)
    ]


def by_place(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """The parts of each place, in order."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(str(part[0]), []).append(part)
    return groups


def named(parts: Sequence[Part]) -> dict[str, list[str]]:
    """place -> labels."""
    return {place: [label_of(head) for _, head in some] for place, some in by_place(parts).items()}
