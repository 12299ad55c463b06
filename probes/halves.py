"""Prompts parted in two: one part to choose by, one to report on; and how well answers are known on a part."""

from __future__ import annotations

import numpy as np

from workbench.behaviour.continuations import continuations_of, logprobs
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float

FEWEST = 2
"""Prompts, or groups of them, that each part needs at least."""


def halves(rows: Prompts, seed: int) -> tuple[Prompts, Prompts]:
    """The part to choose by and the part to report on; prompts of a group stay together, in the rows' order.

    Raises:
        UserError: There are too few prompts or groups.
    """
    clusters = rows.clusters
    names = np.unique(clusters)
    if len(names) < 2 * FEWEST:
        raise UserError(
            f"There are {len(names)} prompts or groups of prompts, and something is chosen on one half and reported on "
            f"the other: give {2 * FEWEST} or more."
        )
    first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    in_first = np.isin(clusters, first)
    return rows[in_first], rows[~in_first]


def answer_scores(subject: Subject, rows: Prompts, work: Work) -> Float[np.ndarray, " prompt"]:
    """The log-probability of each row's answer per token, in nats.

    Raises:
        UserError: A row has no answer.
    """
    ids = encode(rows, subject.model.tokenizer, subject.model.max_positions)
    logs = logprobs(subject, ids, continuations_of(rows, subject, "answer"), work)
    return logs.sum_ / logs.tokens
