"""Which token an answer begins with, in the place where the model would write it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import render, token_ids
from workbench.prompts.joint import joint_of
from workbench.prompts.row import Prompt
from workbench.prompts.templates import as_read
from workbench.typing import Int, Tensor


class AnswerTokens(NamedTuple):
    """The first token of each prompt's answer and distractor."""

    answer: Int[Tensor, " prompt"]
    distractor: Int[Tensor, " prompt"] | None
    """None when no prompt has a distractor."""

    def rows(self, which: Any) -> AnswerTokens:
        """Those of some prompts: a slice or row numbers."""
        return AnswerTokens(self.answer[which], None if self.distractor is None else self.distractor[which])


def answer_tokens(prompts: Prompts, tokenizer: Any) -> AnswerTokens:
    """First tokens in context of all answers and, where every row has one, distractors.

    Raises :class:`UserError` naming the prompt when an answer is missing, when only some rows have a
    distractor, and when both begin with the same token, because then no measure can tell them apart.
    """
    answers = [_answer_of(row, row.answer, number, tokenizer) for number, row in enumerate(prompts)]
    if all(row.distractor is None for row in prompts):
        return AnswerTokens(torch.tensor(answers, dtype=torch.long), None)
    distractors = [_answer_of(row, row.distractor, n, tokenizer, "distractor") for n, row in enumerate(prompts)]
    for number, (row, right, wrong) in enumerate(zip(prompts, answers, distractors, strict=True)):
        if right == wrong:
            raise UserError(
                f"Prompt {number}: answer {row.answer!r} and distractor {row.distractor!r} begin "
                f"with the same token {tokenizer.decode([right])!r}; choose two that begin differently."
            )
    return AnswerTokens(torch.tensor(answers, dtype=torch.long), torch.tensor(distractors, dtype=torch.long))


def answer_token(row: Prompt, tokenizer: Any, answer: str | None = None) -> int:
    """The token that continues the rendered prompt when the model writes ``answer`` (the row's own by
    default); the first of :func:`continuation_ids`.
    """
    return continuation_ids(row, tokenizer, answer)[0]


def continuation_ids(row: Prompt, tokenizer: Any, answer: str | None = None) -> list[int]:
    """The tokens that continue the rendered prompt when the model writes ``answer`` (the row's own by
    default).

    Prompt and answer are tokenised together and compared with the prompt alone. What stands between them is read from
    a plain prompt's own examples, else from the tokenizer (:func:`workbench.prompts.joint.joint_of`); write it at the
    answer's start where another joint is meant. When the tokenizer merges the joint (a prompt that ends with a space),
    the model has read the prompt alone, so the answer's tokens are taken without the space. A row with the column
    ``answer_ids`` (``distractor_ids``) says its tokens itself.
    """
    words = row.answer if answer is None else answer
    if not words:
        raise UserError("The row has no answer; give one in the column 'answer'.")
    if (stored_ids := _given_ids(row, words)) is not None:
        return stored_ids
    row = as_read(row, tokenizer)
    text = render(row, tokenizer)
    joint = "" if row.is_chat else joint_of(text, words, tokenizer)
    complete = row.kind != "prompt"  # with all its special tokens
    prompt_ids = token_ids(text, tokenizer, rendered_chat=complete)
    both = token_ids(text + joint + words, tokenizer, rendered_chat=complete)
    if both[: len(prompt_ids)] == prompt_ids and len(both) > len(prompt_ids):
        return both[len(prompt_ids) :]
    return _after_a_line_break(words.lstrip(), tokenizer)


def _given_ids(row: Prompt, words: str) -> list[int] | None:
    """The tokens of an answer that a row brings as ``answer_ids`` (``distractor_ids``); None where it brings none."""
    for text, column in ((row.answer, "answer_ids"), (row.distractor, "distractor_ids")):
        if words == text and row.columns.get(column):
            return [int(token) for token in row.columns[column]]
    return None


def _answer_of(row: Prompt, answer: str | None, number: int, tokenizer: Any, what: str = "answer") -> int:
    if not answer:
        raise UserError(f"Prompt {number} has no {what}; every row needs one here.")
    try:
        return answer_token(row, tokenizer, answer)
    except UserError as error:
        raise UserError(f"Prompt {number}: {error}") from error


def _after_a_line_break(words: str, tokenizer: Any) -> list[int]:
    """The tokens of ``words`` as they stand after a line break, with which no tokenizer merges a word."""
    opening = token_ids("\n", tokenizer, rendered_chat=True)
    both = token_ids("\n" + words, tokenizer, rendered_chat=True)
    if both[: len(opening)] == opening and len(both) > len(opening):
        return both[len(opening) :]
    ids = token_ids(words, tokenizer, rendered_chat=True)
    if not ids:
        raise UserError(f"The answer {words!r} has no tokens; give it text.")
    return ids
