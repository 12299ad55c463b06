"""Which run gives and which run takes: two models on the same prompts, or one model on pairs of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from probes.whole_answers import Continuations, continuations
from workbench.argument_checks import check_subject
from workbench.behaviour.texts import common_tokens
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.token_rows import check_answers, check_ids
from workbench.prompts import Prompts
from workbench.prompts.answers import continuation_ids
from workbench.prompts.encode import Encoded, encode, pad_left
from workbench.typing import Int, Tensor

MODELS = ("tuned", "base")
RUNS = ("clean", "corrupted")


@dataclass(frozen=True)
class Task:
    """Everything a patching run needs, prompt by prompt."""

    source: AdaptedModel
    target: AdaptedModel
    names: tuple[str, str]
    """What the source and the target run are called."""
    source_ids: list[list[int]]
    target_ids: list[list[int]]
    answers: Int[Tensor, " prompt"] | None
    distractors: Int[Tensor, " prompt"] | None
    prompts: Prompts
    """The rows that take part."""
    on_target_inputs: bool = False
    """Whether the source model's layers read the target's residual stream instead of their own."""
    dropped: int = 0
    """Prompts left out because answer and distractor never part."""
    models: dict[str, AdaptedModel] = field(default_factory=dict)
    read_on: int = 0
    """Prompts whose answer and distractor begin alike: what they share is read with the prompt."""

    whole: Continuations | None = None
    """The tokens of whole answers, where they are what is scored."""

    @property
    def clean_is_source(self) -> bool:
        """Whether the run that shows the behaviour (tuned, clean) gives; otherwise patching damages it."""
        return self.names[0] in ("tuned", "clean")

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.target_ids]

    def batch(self, members: list[int]) -> tuple[Encoded, Encoded]:
        """The source's and the target's token ids of some prompts, padded on the left; with whole answers one row for
        each answer."""
        tokenizer = self.target.tokenizer
        padding = 0 if tokenizer is None else pad_id(tokenizer)

        def padded(ids: list[list[int]], model: AdaptedModel) -> Encoded:
            rows = [ids[row] for row in members] if self.whole is None else self.whole.rows(ids, members, padding)
            return pad_left(rows, padding).to(model.device)

        return padded(self.source_ids, self.source), padded(self.target_ids, self.target)

    def per_prompt(self, values: Tensor) -> Tensor:
        """``values`` [row, ...], summed over the rows of each prompt."""
        return values if self.whole is None else values.unflatten(0, (-1, self.whole.per_prompt)).sum(1)


def make_task(subject: Any, prompts: Any, source: str | None, target: str | None, *, whole: bool = False) -> Task:
    """Read ``subject`` (a model or a pair) and the names of the two runs.

    A pair is patched from ``tuned`` into ``base`` by default, or the other way; with ``clean`` / ``corrupted`` its
    tuned model is patched between each prompt and its ``contrast``, as a single model is. ``whole``: answers are
    scored to their last token.
    """
    check_subject(subject)
    rows = Prompts.of(prompts)
    is_pair = hasattr(subject, "base") and hasattr(subject, "tuned")
    known = (MODELS + RUNS) if is_pair else RUNS
    for name in (source, target):
        if name is not None and name not in known:
            raise UserError(
                f"{name!r} is no run of this subject: source and target are {' or '.join(map(repr, known))}."
            )
    kinds = MODELS if is_pair and source not in RUNS and target not in RUNS else RUNS
    names = _both(source, target, kinds)
    if kinds == MODELS:
        models = {"base": subject.base, "tuned": subject.tuned}
        rows, shared, dropped = _tellable(rows, subject.tuned.tokenizer, whole=whole)
        ids = _read_on(encode(rows, subject.tuned.tokenizer, subject.tuned.max_positions), shared)
        check_ids(ids, models)
        check_answers(rows, subject.tuned.tokenizer, models)
        return _task(models[names[0]], models[names[1]], names, (ids, ids), (rows, shared), dropped, whole=whole)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    rows, shared, dropped = _tellable(rows, model.tokenizer, whole=whole)
    both = {
        "clean": _read_on(encode(rows, model.tokenizer, model.max_positions), shared),
        "corrupted": _read_on(encode(rows.contrasts, model.tokenizer, model.max_positions), shared),
    }
    for ids in both.values():
        check_ids(ids, {model.role: model})
    check_answers(rows, model.tokenizer, {model.role: model})
    return _task(model, model, names, (both[names[0]], both[names[1]]), (rows, shared), dropped, whole=whole)


def check_lengths(task: Task, *, from_the_end: bool) -> None:
    """Raise :class:`UserError` when a clean and a corrupted prompt differ in length and positions are matched."""
    for number, (source, target) in enumerate(zip(task.source_ids, task.target_ids, strict=True)):
        if len(source) != len(target) and not from_the_end:
            raise UserError(
                f"Prompt {number}: the clean and the corrupted prompt have {len(source)} and {len(target)} tokens "
                f"({task.names[0]}, {task.names[1]}); patching by position needs equal lengths: rewrite the contrast, "
                "or patch positions='last'."
            )


def _both(source: str | None, target: str | None, kinds: tuple[str, str]) -> tuple[str, str]:
    if source is None and target is None:
        return kinds
    other = {kinds[0]: kinds[1], kinds[1]: kinds[0]}
    names = (source or other.get(str(target), ""), target or other.get(str(source), ""))
    if set(names) != set(kinds):
        raise UserError(
            f"Cannot patch from {names[0]!r} into {names[1]!r}: source and target are {kinds[0]!r} and {kinds[1]!r}."
        )
    return names


def _tellable(rows: Prompts, tokenizer: Any, *, whole: bool) -> tuple[Prompts, list[list[int]], int]:
    """The rows whose answer and distractor part somewhere, what tokens each pair shares before that (nothing where
    ``whole`` answers are scored), and how many rows never part."""
    tellable: list[int] = []
    shared: list[list[int]] = []
    for number, row in enumerate(rows):
        if not (row.answer and row.distractor):
            tellable.append(number)
            shared.append([])
            continue
        answer, other = (continuation_ids(row, tokenizer, text) for text in (row.answer, row.distractor))
        same = common_tokens(answer, other)
        if same < (max if whole else min)(len(answer), len(other)):
            tellable.append(number)
            shared.append([] if whole else answer[:same])
    if not tellable:
        raise UserError(
            "In every prompt answer and distractor are the same tokens as far as the shorter one goes, so no metric "
            "tells them apart: choose answers that differ."
        )
    return rows[tellable], shared, len(rows) - len(tellable)


def _read_on(ids: list[list[int]], shared: list[list[int]]) -> list[list[int]]:
    """Prompts with what answer and distractor both say, so that the token behind tells them apart."""
    return [[*tokens, *more] for tokens, more in zip(ids, shared, strict=True)]


def _task(
    source: AdaptedModel,
    target: AdaptedModel,
    names: tuple[str, str],
    ids: tuple[list[list[int]], list[list[int]]],
    rows_shared: tuple[Prompts, list[list[int]]],
    dropped: int,
    *,
    whole: bool,
) -> Task:
    """``rows_shared``: the rows, and what answer and distractor of each share."""
    (rows, shared), tokenizer = rows_shared, target.tokenizer
    models: dict[str, AdaptedModel] = {names[0]: source, names[1]: target}
    if source is target:
        models = {target.role: target}

    def firsts(words: list[str | None]) -> Tensor | None:
        if any(not word for word in words):
            return None
        ids = [continuation_ids(row, tokenizer, word) for row, word in zip(rows, words, strict=True)]
        return torch.tensor([tokens[len(more)] for tokens, more in zip(ids, shared, strict=True)])

    lengths = [max(map(len, both)) for both in zip(*ids, strict=True)]
    answers, distractors = firsts([row.answer for row in rows]), firsts([row.distractor for row in rows])
    return Task(
        source,
        target,
        names,
        ids[0],
        ids[1],
        answers,
        distractors,
        rows,
        False,
        dropped,
        models,
        sum(map(bool, shared)),
        continuations(rows, tokenizer, lengths, target.max_positions) if whole else None,
    )
