"""Training-time markers: what is known about each row stands in front of it, left out often enough to be optional."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.row import Prompt


def marked(
    prompts: Any, columns: Sequence[str], *, drop: float = 0.5, form: str = "<{name}:{value}>", seed: int = 0
) -> Prompts:
    """Every row with its markers in front, each left out with chance ``drop``, so that a tuned model can do without.

    After D'souza et al. (2025): a model tuned on such rows obeys markers that are there and infers those that are not.
    Markers become a system turn of chats, else words in front of the text. With ``drop=0`` it makes the rows of a
    system-prompt switch, and of evaluation.

    Example:
        >>> marked([{"prompt": "Hi", "answer": " Hello", "length": "short"}], ["length"], drop=0)[0].prompt
        '<length:short> Hi'

    Args:
        prompts: Rows that have the columns.
        columns: Names of the columns that become markers: length, domain, quality, language, ...
        drop: Chance that a marker is left out.
        form: How one is written.
        seed: Of the chances.

    Raises:
        UserError: A chance that is none, no column, or a row that lacks one.
    """
    if not 0 <= drop <= 1:
        raise UserError(f"drop is a chance, from 0 to 1; got {drop:g}.")
    if not columns:
        raise UserError("There is nothing to mark: name at least one column.")
    random, made = np.random.default_rng(seed), []
    for number, row in enumerate(Prompts.of(prompts)):
        if absent := [name for name in columns if row.columns.get(name) is None]:
            raise UserError(f"Prompt {number} has no {absent[0]!r}, which was to be its marker.")
        shown = [form.format(name=name, value=row.columns[name]) for name in columns if random.random() >= drop]
        made.append(_behind(row, " ".join(shown)) if shown else row)
    return Prompts(made)


def _behind(row: Prompt, markers: str) -> Prompt:
    if row.input_ids is not None:
        raise UserError("Markers are words, and a row of token ids has none: give texts or messages.")
    if row.messages is None:
        return dataclasses.replace(row, prompt=f"{markers} {row.prompt}")
    turns = list(row.messages)
    if turns and turns[0]["role"] == "system":
        turns[0] = {**turns[0], "content": f"{markers} {turns[0]['content']}"}
    else:
        turns.insert(0, {"role": "system", "content": markers})
    return dataclasses.replace(row, messages=tuple(turns))
