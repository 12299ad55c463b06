"""``demonstration_utility``: DELIFT-style, how much a training row helps the queries when it is shown as an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch

from interventions.training.examples import Collator, Example, check_answers, examples_of
from probes.call_settings import call_settings
from probes.influence.result import (
    CONTROL,
    RowInfluence,
    benchmark_of,
    check_rows,
    check_said,
    row_table,
    stand_ins,
    without_self,
)
from probes.influence.text_rankers import bm25
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches
from workbench.prompts.row import Prompt
from workbench.typing import Float


def _check(rows: Prompts, said: Mapping[str, Any]) -> None:
    """Refuse rows and queries before the models are loaded."""
    check_said(rows, said)
    for texts in (rows, said["queries"]):
        check_answers(texts)


@method(
    "delift",
    group="data",
    question="Which training rows help the behaviour when they are shown as an example?",
    papers=("DELIFT: Data Efficient Language model Instruction Fine Tuning",),
    cost="one forward pass per pair of row and query, and of row and stand-in; no gradients",
    example="--queries queries.jsonl --controls 5",
    check=_check,
)
def demonstration_utility(  # noqa: PLR0913 (a public call; all but three by keyword)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    within: Literal["base", "tuned"] = "base",
    match: str | None = None,
    near: str | None = None,
    k: int = 5,
    batch_size: int = 16,
    controls: int = 8,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> RowInfluence:
    """Rank training rows by the pairwise utility of DELIFT: how much nearer a query's answer gets with the row shown.

    Utility of row i for query j: d(j) - d(j | i), where d is the distance of the answer's token probabilities from 1,
    sqrt(mean((1 - p)^2)), and "| i" has the row's prompt and answer in front, as an earlier turn of the chat. It needs
    no gradients, so it is a cheap cross-check of :func:`probes.row_influence` for a few hundred pairs.

    Args:
        pair: Base and tuned.
        prompts: The training rows, each with its answer.
        queries: Prompts with answers that show the behaviour, worded otherwise than the training rows.
        within: The model that is shown the rows: the base (what would it learn?) or the tuned model.
        match: A column that rows and queries share; adds the precision at k and AUC of this and of BM25.
        near: A column of the subject: adds the AUC against rows of the query's subject that are not right.
        k: Rows that the precision counts.
        batch_size: Pairs per forward pass.
        controls: Random training rows that stand in for queries in the control.
        draws: Resamples of the intervals.
        seed: Of stand-ins and resamples.

    Returns:
        Score, interval, control and q of every training row [row].

    Raises:
        UserError: A row without an answer, rows of token ids, too few rows or queries, queries that are training rows.

    Example:
        >>> probes.demonstration_utility(pair, train[:100], queries=odd)  # doctest: +SKIP
    """
    check_pair(pair)
    rows, asked_for = Prompts.of(prompts), Prompts.of(queries)
    check_rows(rows, asked_for, controls, match, near)
    model, drawn = pair.models[within], stand_ins(rows, controls, seed)
    learned = Prompts([*asked_for, *rows[drawn]])
    bar = progress or Silent()
    bar.start("utilities", len(rows))
    with counted(model) as passes:
        alone = _distances(model, learned, batch_size)
        shown = np.zeros((len(rows), len(learned)))
        for number, row in enumerate(rows):
            shown[number] = _distances(model, Prompts([_behind(row, query) for query in learned]), batch_size)
            bar.advance()
    bar.finish()
    utility = alone[None] - shown
    similarity, control = utility[:, : len(asked_for)], without_self(utility[:, len(asked_for) :], drawn)
    texts = {"bm25": bm25(rows, asked_for)}
    return RowInfluence(
        table=row_table(similarity, control, rows, asked_for, texts, draws, seed),
        control=CONTROL,
        provenance=Provenance.of(
            "demonstration_utility", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, queries=asked_for),
        ),
        ranker="utility as a demonstration",
        benchmark=benchmark_of({"utility as a demonstration": similarity, **texts}, rows, asked_for, match, k, near),
        queries=len(asked_for),
    )  # fmt: skip


def _behind(row: Prompt, query: Prompt) -> Prompt:
    """``query`` with ``row`` and its answer in front: as turns of a chat, or as lines of text."""
    if row.input_ids is not None or query.input_ids is not None:
        raise UserError("Rows of token ids cannot be shown as examples: give texts or chats.")
    if row.is_chat or query.is_chat:
        turns = (*_turns(row), {"role": "assistant", "content": row.answer or ""}, *_turns(query))
        return Prompt(messages=turns, answer=query.answer)
    text = f"{row.prompt} {(row.answer or '').lstrip()}\n\n{query.prompt}"
    return Prompt(prompt=text, chat=query.chat, answer=query.answer)


def _turns(row: Prompt) -> tuple[Any, ...]:
    return row.messages if row.messages is not None else ({"role": "user", "content": row.prompt},)


@torch.no_grad()
def _distances(model: AdaptedModel, rows: Prompts, batch_size: int) -> Float[np.ndarray, " row"]:
    """sqrt(mean over the answer's tokens of (1 - probability)^2) of every row."""
    examples: list[Example] = examples_of(rows, model.tokenizer, end=False)
    distances = np.zeros(len(examples))
    collate = Collator(pad_id(model.tokenizer))
    for members in batches([len(example.prompt) + len(example.answer) for example in examples], batch_size):
        batch = collate([examples[number] for number in members])
        with model.active():
            logits = model.inner(
                input_ids=batch["input_ids"].to(model.device), attention_mask=batch["attention_mask"].to(model.device),
                use_cache=False,
            ).logits  # fmt: skip
        labels = batch["labels"][:, 1:].to(logits.device)
        chances = logits[:, :-1].float().softmax(-1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
        real = (labels >= 0).float()
        mean = ((1 - chances).square() * real).sum(1) / real.sum(1).clamp_min(1)
        distances[members] = mean.sqrt().cpu().numpy()
    return distances
