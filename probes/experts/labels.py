"""Classes of behaviour: labels of the responses, given in a column, as a list, or by a function that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.behaviour.generation import end_ids
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent, listening
from workbench.prompts import Prompt, Prompts
from workbench.prompts.encode import batches
from workbench.typing import Bool

Labeller = Callable[[str, Prompt], Any]
"""Reads a response (and the prompt it answers) and names its class."""


@dataclass(frozen=True)
class Classes:
    """Which of the labelled prompts show the behaviour."""

    target: str
    others: tuple[str, ...]
    rows: tuple[int, ...]
    """The prompts that have a label; the others are left out."""
    is_target: Bool[np.ndarray, " prompt"]
    """One entry per labelled prompt."""


def classes_of(labels: Sequence[Any], target: Any = None) -> Classes:
    """Split labels into ``target`` and the rest; None means no label.

    ``target`` may be left out when there are two classes: it is then True or 1, else the rarer one (the map of the
    other is the same with its signs turned). Raises :class:`UserError` for labels of one class, for an unknown target
    and for a missing one among three classes or more.
    """
    rows = tuple(number for number, label in enumerate(labels) if label is not None)
    values = [labels[row] for row in rows]
    known = sorted({str(label) for label in values})
    if len(known) < 2:
        only = f"all are {known[0]!r}" if known else "no prompt has a label"
        raise UserError(
            f"A map of differences needs two classes of behaviour, but {only}: give prompts of both classes, or labels."
        )
    if target is None:
        if len(known) > 2:
            raise UserError(
                f"Say which class is the behaviour, as in target={known[0]!r}: labels are {', '.join(known)}."
            )
        named = [str(label) for label in values]
        target = max(values) if set(values) <= {0, 1} else min(known, key=named.count)
    if str(target) not in known:
        raise unknown_name("class", str(target), known)
    is_target = np.array([str(label) == str(target) for label in values])
    return Classes(str(target), tuple(name for name in known if name != str(target)), rows, is_target)


def respond(
    model: AdaptedModel, prompts: Prompts, max_new_tokens: int, batch_size: int, progress: Progress | None = None
) -> tuple[list[list[int]], int]:
    """The model's greedy response to each prompt as token ids without the end of text, and the forward passes spent."""
    report, passes = progress or Silent(), 0
    ids = [model.encode(prompts[[number]]).input_ids[0].tolist() for number in range(len(prompts))]
    plan = batches([len(row) for row in ids], batch_size)
    responses: list[list[int]] = [[] for _ in ids]
    report.start("Generating responses", len(plan))
    for members in plan:
        batch = model.encode(prompts[members])
        with listening(progress):
            new = model.generate_ids(batch, max_new_tokens=max_new_tokens)[:, batch.input_ids.shape[1] :].cpu()
        passes += new.shape[1]
        for row, tokens in zip(members, new, strict=True):
            responses[row] = before_end(tokens, end_ids(model))
        report.advance()
    report.finish()
    return responses, passes


def before_end(tokens: torch.Tensor, ends: set[int]) -> list[int]:
    """The tokens before the first that ends a response."""
    ids_before: list[int] = []
    for token in tokens.tolist():
        if token in ends:
            break
        ids_before.append(token)
    return ids_before
