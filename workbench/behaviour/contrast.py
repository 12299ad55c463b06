"""Prompts made from questions alone: the tuned model's words become the answer, the base's the distractor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from workbench.argument_checks import check_pair
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.behaviour.texts import common_tokens
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.prompts.row import Prompt


def contrast(
    pair: ModelPair,
    prompts: Any,
    *,
    max_new_tokens: int = 16,
    whole: bool = False,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Prompts:
    """Rows that end where the greedy answers of base and tuned model part.

    The prompt is the question with all that both models say alike; ``answer`` is the tuned model's next token there and
    ``distractor`` the base's. So whoever has nothing but questions can ask where the change sits:
    ``probes.patching(pair, wb.contrast(pair, questions))``.

    Args:
        pair: base and tuned model.
        prompts: questions, without answers; a row's own answer and distractor are replaced.
        max_new_tokens: how far the answers are compared, in tokens.
        whole: the rows are the questions themselves, and ``answer`` and ``distractor`` all that was said, for
            ``probes.patching(..., answer_tokens="all")``.
        batch_size: prompts per batch.
        progress: who hears of it.

    Returns:
        The rows whose answers differ, with label, group and columns; ``columns["row"]`` is the number of the question.

    Raises:
        UserError: when no answer differs.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    work, decoding = Work(batch_size, progress), Decoding(max_new_tokens)
    theirs, ours = (generate_replies(Subject(role, model), rows, decoding, work) for role, model in pair.models.items())
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    contrasts = []
    for number, (row, read, base, tuned) in enumerate(zip(rows, ids, theirs, ours, strict=True)):
        both = (tuned[0].ids, base[0].ids)
        shared = common_tokens(*both)
        if shared < min(map(len, both)):
            made = _whole(row, number, both, pair.tokenizer) if whole else None
            contrasts.append(made or _parted(row, number, read, both, shared, pair.tokenizer))
    if not contrasts:
        raise UserError(
            f"Nothing to localize: 0 of {len(rows)} answers differ in their first {max_new_tokens} tokens; ask what "
            "the tuning was about, or raise max_new_tokens."
        )
    return Prompts(contrasts)


def _whole(row: Prompt, number: int, both: tuple[Sequence[int], Sequence[int]], tokenizer: Any) -> Prompt:
    """The question with both answers to their end."""
    mine, other = ([int(token) for token in ids] for ids in both)
    columns = {**row.columns, "answer_ids": mine, "distractor_ids": other, "row": number}
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (mine, other)]
    if texts[0] == texts[1] or not all(texts):
        texts = [f"tokens {' '.join(map(str, ids))}" for ids in (mine, other)]
    return dataclasses.replace(row, answer=texts[0], distractor=texts[1], contrast=None, columns=columns)


def _parted(
    row: Prompt, number: int, ids: Sequence[int], both: tuple[Sequence[int], Sequence[int]], shared: int, tokenizer: Any
) -> Prompt:
    mine, other = ([int(tokens[shared])] for tokens in both)
    columns = {**row.columns, "answer_ids": mine, "distractor_ids": other, "row": number}
    texts = [tokenizer.decode(tokens) for tokens in (mine, other)]
    if texts[0] == texts[1] or not all(texts):  # parts of a letter
        texts = [f"token {tokens[0]}" for tokens in (mine, other)]
    made = dataclasses.replace(row, answer=texts[0], distractor=texts[1], contrast=None, columns=columns)
    if not shared:
        return made
    read = (*ids, *map(int, both[0][:shared]))
    return dataclasses.replace(made, prompt=None, messages=None, input_ids=read)
