"""Prompts parted in two: one part to choose by, one to report on; and how well answers are known on a part."""

from __future__ import annotations

import numpy as np

from workbench.behaviour.continuations import continuations_of, logprobs
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Bool, Float, Int

FEWEST = 2
"""Prompts, or groups of them, that each part needs at least."""


def in_first_half(rows: Prompts, seed: int) -> Bool[np.ndarray, " prompt"]:
    """Which prompts are of the part to choose by (or to train on); prompts of a group stay together.

    Raises:
        UserError: There are too few prompts or groups.
    """
    count = len(np.unique(rows.clusters))
    if count < 2 * FEWEST:
        raise UserError(
            f"There are {count} prompts or groups of prompts, and something is chosen on one half and reported on "
            f"the other: give {2 * FEWEST} or more."
        )
    return half_of(rows.clusters, seed)


def half_of(clusters: Int[np.ndarray, " row"], seed: int) -> Bool[np.ndarray, " row"]:
    """Which rows are of half of the clusters, drawn by the seed."""
    names = np.unique(clusters)
    return np.isin(clusters, np.random.default_rng(seed).permutation(names)[: len(names) // 2])


def halves(rows: Prompts, seed: int) -> tuple[Prompts, Prompts]:
    """The part to choose by and the part to report on, in the rows' order."""
    inside = in_first_half(rows, seed)
    return rows[inside], rows[~inside]


def answer_scores(subject: Subject, rows: Prompts, work: Work) -> Float[np.ndarray, " prompt"]:
    """The log-probability of each row's answer per token, in nats.

    Raises:
        UserError: A row has no answer.
    """
    ids = encode(rows, subject.model.tokenizer, subject.model.max_positions)
    logs = logprobs(subject, ids, continuations_of(rows, subject, "answer"), work)
    return logs.sum_ / logs.tokens
