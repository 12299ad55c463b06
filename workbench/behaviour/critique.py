"""A model asked whether its own answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.behaviour.scores import logits_of
from workbench.behaviour.subject import Subject, Work
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.prompts.answers import answer_tokens, continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.row import Prompt
from workbench.prompts.templates import as_read
from workbench.typing import Float

QUESTION = "\nIs this answer right? Answer yes or no:"


@method(
    "self-critique",
    group="behaviour",
    question="Does the model stand by right answers and mend wrong ones?",
    kind="behaviour",
    papers=("Confidence v.s. Critique: A Decomposition of Self-Correction Capability for LLMs",),
    cost="generated answers and a forward pass per batch, and both again for the control",
    example="--yes ' accept' --no ' reject' --max-new-tokens 2",
    control={"exchanged": True},
)
def self_critique(
    model: AdaptedModel,
    prompts: Any,
    answers: Sequence[str] | None = None,
    *,
    question: str = QUESTION,
    yes: str = "yes",
    no: str = "no",
    exchanged: bool = False,
    max_new_tokens: int = 16,
    batch_size: int = 32,
) -> Float[np.ndarray, " prompt"]:
    """The model's own probability, between 0 and 1, that its answer to each prompt is right: P(yes) / (P(yes) + P(no)).

    P(True) of Kadavath et al. 2022: the prompt, the answer (by default the model's greedy text) and ``question`` are
    read, and the first tokens of ``yes`` and ``no`` compared. A model that was not tuned to judge itself may say
    anything here, and many say yes to whatever they read: the control judges the answer to another prompt.

    Args:
        model: A model.
        prompts: Anything :class:`workbench.Prompts` takes.
        answers: What it judges, one text per prompt; by default its own greedy texts.
        question: What it is asked about the answer.
        yes: The word that says that the answer is right.
        no: The word that says that it is wrong.
        exchanged: Judge the answer to another prompt instead of its own, which is the control.
        max_new_tokens: Tokens of its own answers at most.
    """
    rows = Prompts.of(prompts)
    said = answers if answers is not None else model.generate(rows, max_new_tokens=max_new_tokens)
    said = [*said[-1:], *said[:-1]] if exchanged else said
    questions = Prompts(
        [_asked(row, text, question, yes, no, model.tokenizer) for row, text in zip(rows, said, strict=True)]
    )
    tokens = answer_tokens(questions, model.tokenizer)
    assert tokens.distractor is not None
    logits = logits_of(Subject("critique", model), questions, Work(batch_size))
    gap = logits.gather(1, tokens.answer[:, None]) - logits.gather(1, tokens.distractor[:, None])
    return gap[:, 0].double().sigmoid().numpy()


def _asked(row: Prompt, text: str, question: str, yes: str, no: str, tokenizer: Any) -> Prompt:
    if row.input_ids is not None:
        ids = (*row.input_ids, *continuation_ids(row, tokenizer, f"{text}{question}"))
        return Prompt(input_ids=ids, answer=yes, distractor=no)
    row = as_read(row, tokenizer)
    if row.messages is None:
        joint = "" if text[:1].isspace() else " "
        return Prompt(prompt=f"{row.prompt}{joint}{text}{question}", answer=yes, distractor=no)
    turns = [*row.messages, {"role": "assistant", "content": text}, {"role": "user", "content": question.strip()}]
    return Prompt(messages=tuple(turns), answer=yes, distractor=no)
