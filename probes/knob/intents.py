"""Prompts as pairs: the same context and query under two opposite intents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.behaviour.texts import common_tokens
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Bool, Int, Tensor

POSITIVE = "context"
"""This intent, where it is one of the two, is the knob's positive end."""


@dataclass(frozen=True)
class IntentPairs:
    """Rows 2k and 2k + 1 are pair k under ``intents[0]`` and ``intents[1]``; a row's partner is ``row ^ 1``."""

    rows: Prompts
    ids: tuple[tuple[int, ...], ...]
    answers: Int[Tensor, " row"]
    """The first token of each row's own answer that the partner's answer does not share."""
    intents: tuple[str, str]
    groups: tuple[str, ...]
    counts: dict[str, int]
    """How many pairs were given, and left out for which reason."""

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def wanted(self) -> Int[Tensor, " row"]:
        """The answer of each row's partner: what a swap should bring."""
        return self.answers[partners(len(self.answers))]

    def choose(self, pairs: np.ndarray, **counts: int) -> IntentPairs:
        """The pairs with these numbers; ``counts`` are added to the tally."""
        rows_of_pairs = [row for pair in pairs.tolist() for row in (2 * pair, 2 * pair + 1)]
        return IntentPairs(
            rows=self.rows[rows_of_pairs],
            ids=tuple(self.ids[row] for row in rows_of_pairs),
            answers=self.answers[rows_of_pairs],
            intents=self.intents,
            groups=tuple(self.groups[pair] for pair in pairs.tolist()),
            counts={**self.counts, **counts},
        )


def partners(n_rows: int) -> Int[Tensor, " row"]:
    """The number of each row's partner."""
    return torch.arange(n_rows) ^ 1


def both(per_row: Bool[Tensor, " row"]) -> np.ndarray:
    """[pair] whether both rows of a pair hold."""
    return per_row.reshape(-1, 2).all(1).numpy()


def intent_pairs(prompts: Prompts, model: AdaptedModel) -> IntentPairs:
    """Pairs from rows with ``group``, ``answer`` and a column ``intent``.

    Answers that begin alike are read to where they part. Groups without exactly one row of each intent, and pairs whose
    answers never part, are left out and counted. Raises :class:`UserError` when a column is missing, there are not two
    intents, or nothing is left.
    """
    intents = _two_intents(prompts)
    by_group = prompts.groups
    whole = [pair for rows in by_group.values() if (pair := _ordered(prompts, rows, intents)) is not None]
    if not whole:
        raise UserError(
            f"No group of prompts has one row of each intent ({intents[0]}, {intents[1]}): give both rows of a "
            "context and query the same value in the column 'group'."
        )
    whole_pairs = prompts[[row for pair in whole for row in pair]]
    shared, answers = _parting(whole_pairs, model)
    differ = np.array([token >= 0 for token in answers[::2]])
    pairs = IntentPairs(
        rows=whole_pairs,
        ids=tuple(
            (*ids, *more)
            for ids, more in zip(encode(whole_pairs, model.tokenizer, model.max_positions), shared, strict=True)
        ),
        answers=torch.tensor(answers),
        intents=intents,
        groups=tuple(str(whole_pairs[2 * pair].group) for pair in range(len(whole))),
        counts={"given": len(by_group), "incomplete": len(by_group) - len(whole)},
    )
    if not differ.any():
        raise UserError(
            "In every pair both answers are the same tokens as far as the shorter one goes, so no logit can tell them "
            "apart: choose answers that differ."
        )
    read_on = sum(bool(more) for more in shared[::2])
    return pairs.choose(np.flatnonzero(differ), first_token_clash=int((~differ).sum()), read_to_the_difference=read_on)


def _parting(rows: Prompts, model: AdaptedModel) -> tuple[list[list[int]], list[int]]:
    """What both answers of a pair say alike, which is read with the prompt, and the token behind it of each row's own
    answer; -1 where they never part."""
    shared: list[list[int]] = []
    tokens: list[int] = []
    for number in range(0, len(rows), 2):
        both = [continuation_ids(row, model.tokenizer) for row in rows[number : number + 2]]
        same = common_tokens(*both)
        parts = same < min(map(len, both))
        shared += [both[0][:same] if parts else []] * 2
        tokens += [ids[same] if parts else -1 for ids in both]
    return shared, tokens


def _two_intents(prompts: Prompts) -> tuple[str, str]:
    intents = sorted({str(row.columns["intent"]) for row in prompts if "intent" in row.columns})
    if len(intents) != 2:
        shown = ", ".join(intents) or "none"
        raise UserError(
            f"A knob needs prompts of two intents in the column 'intent', and there are {len(intents)} ({shown}): "
            "give rows with group, intent and answer."
        )
    first, second = intents
    return (second, first) if second == POSITIVE else (first, second)


def _ordered(prompts: Prompts, rows: list[int], intents: tuple[str, str]) -> tuple[int, int] | None:
    named = [str(prompts[row].columns.get("intent")) for row in rows]
    if sorted(named) != sorted(intents) or any(not prompts[row].answer for row in rows):
        return None
    return rows[named.index(intents[0])], rows[named.index(intents[1])]
