"""A recording in which base and tuned model read different prompts, row for row the same questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.recording.recording import Recording


def record_sides(
    record_side: Callable[..., Recording],
    pair: Any,
    prompts: Any,
    base_prompts: Any,
    shared: Mapping[str, Any],
    apart: Sequence[str],
) -> Recording:
    """Both sides recorded by themselves, as one recording; the index is that of ``prompts``, the tuned model's.

    Args:
        record_side: :func:`workbench.record`, for one model.
        pair: Both models.
        prompts: What the tuned model reads.
        base_prompts: What the base reads, as many rows.
        shared: Options of :func:`workbench.record` for both sides.
        apart: Options that were given and that one model's own prompts do not allow.

    Raises:
        UserError: Such an option was given, or the rows of both sides do not line up.
    """
    check_pair(pair)
    if apart:
        raise UserError(f"base_prompts= are recorded in memory, without {apart[0]}=: leave {apart[0]}= out.")
    rows = {"base": Prompts.of(base_prompts), "tuned": Prompts.of(prompts)}
    if len(rows["base"]) != len(rows["tuned"]):
        raise UserError(
            f"There are {len(rows['base'])} base prompts for {len(rows['tuned'])} prompts: give the base its own form "
            "of every row."
        )
    sides = {role: record_side(pair.models[role], rows[role], **shared) for role in ("base", "tuned")}
    _check_aligned({role: side.index["prompt"].to_numpy() for role, side in sides.items()})
    tuned = sides["tuned"]
    config = {
        **tuned.config, "roles": ["base", "tuned"], "base_prompts": rows["base"].hash,
        "models": {role: next(iter(side.config["models"].values())) for role, side in sides.items()},
    }  # fmt: skip
    tensors = {role: next(iter(side.tensors.values())) for role, side in sides.items()}
    return Recording(tuned.index, config, tensors)


def _check_aligned(of: Mapping[str, np.ndarray]) -> None:
    """Every prompt has as many recorded tokens on both sides."""
    size = 1 + max(int(numbers.max()) for numbers in of.values())
    counts = {role: np.bincount(numbers, minlength=size) for role, numbers in of.items()}
    apart = np.flatnonzero(counts["base"] != counts["tuned"])
    if len(apart):
        row = int(apart[0])
        raise UserError(
            f"The positions choose {counts['base'][row]} tokens of the base's prompt {row} and {counts['tuned'][row]} "
            'of the tuned model\'s, so their rows do not line up: choose positions of one number, such as "last".'
        )
