"""A task of a language model: which of the candidate answers it puts highest after each prompt, by their first tokens
or as wholes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from probes.grafting.tasks import Classify, Task
from probes.whole_answers import Continuations, summed_log_probability
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts.answers import answer_token, continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import Encoded, batches, encode, pad_left
from workbench.typing import Float, Int, Tensor

Batch = tuple[Encoded, Tensor, Tensor]


@dataclass(frozen=True)
class AnswerRows:
    """Prompts as token ids with their candidate tokens; ``dropped`` rows had answers that begin alike."""

    ids: list[list[int]]
    candidates: Int[Tensor, "row class"]
    label: Int[Tensor, " row"]
    clusters: Int[np.ndarray, " row"]
    pad: int
    dropped: int
    whole: Continuations | None = None
    """The tokens of whole candidates, where they are what is compared."""

    def task(self, rows: np.ndarray, model: AdaptedModel, batch_size: int) -> Task:
        """The task on some rows, in batches of similar length; it runs ``model`` whatever it is handed."""
        made: list[Batch] = []
        order: list[int] = []
        for batch in batches([len(self.ids[row]) for row in rows], batch_size):
            numbers = [int(rows[i]) for i in batch]
            order += numbers
            made.append(self._batch(numbers))
        return Task((answers_of if self.whole is None else whole_answers_of)(model), made, self.clusters[order])

    def _batch(self, numbers: list[int]) -> Batch:
        if self.whole is None:
            return pad_left([self.ids[n] for n in numbers], self.pad), self.candidates[numbers], self.label[numbers]
        rows = self.whole.rows(self.ids, numbers, self.pad)
        return pad_left(rows, self.pad), self.whole.targets(numbers), self.label[numbers]


def answers_of(model: AdaptedModel) -> Classify:
    """Logits of the candidate tokens at the last position, in ``model``'s view of the weights."""

    def classify(_: nn.Module, batch: Any) -> tuple[Float[Tensor, "row class"], Int[Tensor, " row"]]:
        encoded, candidates, label = batch
        logits = model.forward(encoded, logits="last", grad=torch.is_grad_enabled())
        assert logits is not None
        last = logits[:, -1]
        return last.gather(1, candidates.to(last.device)), label.to(last.device)

    return classify


def whole_answers_of(model: AdaptedModel) -> Classify:
    """The summed log-probability of every token of each candidate, in ``model``'s view of the weights."""

    def classify(_: nn.Module, batch: Any) -> tuple[Float[Tensor, "row class"], Int[Tensor, " row"]]:
        encoded, targets, label = batch
        logits = model.forward(encoded, logits=targets.shape[1], grad=torch.is_grad_enabled())
        assert logits is not None
        scores = summed_log_probability(logits, targets)
        return scores.view(len(label), -1), label.to(scores.device)

    return classify


def answer_rows(prompts: Prompts, model: AdaptedModel, *, whole: bool = False) -> AnswerRows:
    """Candidates are answer and distractor where every row has both, else the answers of all rows.

    Rows whose answer begins with the same token as another candidate are dropped and counted; where ``whole`` answers
    are compared, only those whose answer is the other candidate. Raises :class:`UserError` when answers are missing or
    there is nothing to choose between.
    """
    if missing := [number for number, row in enumerate(prompts) if not row.answer]:
        raise UserError(f"Prompt {missing[0]} has no answer; grafting needs the column 'answer' in every row.")
    paired = all(row.distractor for row in prompts)
    if whole:
        return _whole(prompts, model, paired=paired)
    pairs = _pairs(prompts, model) if paired else _shared(prompts, model)
    usable = [number for number, pair in enumerate(pairs) if pair is not None]
    candidates = torch.tensor([pair[0] for pair in pairs if pair is not None])
    if not usable or candidates.shape[1] < 2:
        raise UserError(
            "There is nothing to choose between: give rows with different answers, or a distractor for each, that "
            f"begin with different tokens ({len(pairs) - len(usable)} of {len(pairs)} rows were dropped for that)."
        )
    ids = encode(prompts[usable], model.tokenizer, model.max_positions)
    labels = torch.tensor([pair[1] for pair in pairs if pair is not None])
    return AnswerRows(
        ids, candidates, labels, prompts.clusters[usable], pad_id(model.tokenizer), len(pairs) - len(usable)
    )


def _pairs(prompts: Prompts, model: AdaptedModel) -> list[tuple[list[int], int] | None]:
    pairs: list[tuple[list[int], int] | None] = []
    for row in prompts:
        both = [answer_token(row, model.tokenizer, text) for text in (row.answer, row.distractor)]
        pairs.append((both, 0) if both[0] != both[1] else None)
    return pairs


def _shared(prompts: Prompts, model: AdaptedModel) -> list[tuple[list[int], int] | None]:
    """All answers of the prompts are everybody's candidates."""
    tokens = [answer_token(row, model.tokenizer) for row in prompts]
    texts: dict[int, set[str]] = {}
    for token, row in zip(tokens, prompts, strict=True):
        texts.setdefault(token, set()).add((row.answer or "").strip())
    clear = sorted(token for token, said in texts.items() if len(said) == 1)
    return [(clear, clear.index(token)) if token in clear else None for token in tokens]


def _whole(prompts: Prompts, model: AdaptedModel, *, paired: bool) -> AnswerRows:
    """Every candidate to its last token."""
    every = list(dict.fromkeys(str(row.answer) for row in prompts))
    texts = [[row.answer, row.distractor] if paired else every for row in prompts]
    labels = [0 if paired else every.index(str(row.answer)) for row in prompts]
    tokens = [
        [continuation_ids(row, model.tokenizer, text) for text in candidates]
        for row, candidates in zip(prompts, texts, strict=True)
    ]
    usable = [number for number, token in enumerate(tokens) if token.count(token[labels[number]]) == 1]
    if not usable or len(texts[0]) < 2:
        raise UserError(
            "There is nothing to choose between: give rows with different answers, or a distractor for each that "
            f"differs from its answer ({len(tokens) - len(usable)} of {len(tokens)} rows were dropped for that)."
        )
    ids, whole = (
        encode(prompts[usable], model.tokenizer, model.max_positions),
        Continuations([tokens[n] for n in usable]),
    )
    whole.check_room([len(row) for row in ids], model.max_positions)
    label = torch.tensor([labels[number] for number in usable])
    first = torch.tensor([[token[0] for token in tokens[number]] for number in usable])
    pad, dropped = pad_id(model.tokenizer), len(tokens) - len(usable)
    return AnswerRows(ids, first, label, prompts.clusters[usable], pad, dropped, whole)
