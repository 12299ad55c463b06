"""What a stage of tuning minimises: text, answers, answers with masked thoughts, preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch

from interventions.training.examples import (
    IGNORED,
    Collator,
    Example,
    answer_log_probs,
    answer_loss,
    examples_of,
)
from interventions.training.offsets import dpo_loss, with_reference
from interventions.training.trainer import Objective
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Int, Tensor

ObjectiveName = Literal["text", "answer", "masked_thought", "dpo", "orpo"]
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
"""text: the next token everywhere (continued pre-training); answer: supervised fine-tuning; masked_thought: the same
with answer tokens masked in the input (Chen et al. 2024); dpo, orpo: the answer preferred to the distractor."""


@dataclass(frozen=True)
class Lesson:
    """A stage as a trainer takes it."""

    examples: Sequence[Example]
    collator: Collator
    objective: Objective


def lesson_of(
    model: AdaptedModel, prompts: Any, name: str, *, end: bool, beta: float, mask_share: float, seed: int, batch: int
) -> Lesson:
    """The rows, their collator and the loss of one objective. Raises :class:`UserError` for rows that lack a part."""
    rows, pad = Prompts.of(prompts), pad_id(model.tokenizer)
    if name == "text":
        return Lesson(text_examples(rows, model), Collator(pad), answer_loss)
    examples = examples_of(rows, model.tokenizer, preferences=name in ("dpo", "orpo"), end=end)
    if name == "dpo":
        examples = with_reference(model, examples, batch)
        return Lesson(examples, Collator(pad), partial(dpo_loss, beta=beta))
    if name == "orpo":
        return Lesson(examples, Collator(pad), partial(orpo_loss, weight=beta))
    if name == "masked_thought":
        generator = torch.Generator().manual_seed(seed)
        return Lesson(examples, MaskedThought(pad, mask_token(model.tokenizer), mask_share, generator), answer_loss)
    return Lesson(examples, Collator(pad), answer_loss)


def text_examples(rows: Prompts, model: AdaptedModel) -> list[Example]:
    """Every token but the first is to be predicted: the prompt's, and behind it the answer's where there is one."""
    answered = all(row.answer for row in rows)
    texts = (
        [example.prompt + example.answer for example in examples_of(rows, model.tokenizer)]
        if answered
        else encode(rows, model.tokenizer, model.max_positions)
    )
    if short := [number for number, ids in enumerate(texts) if len(ids) < 2]:
        raise UserError(f"Text {short[0]} has one token, so nothing in it can be predicted: remove it.")
    return [Example(list(ids[:1]), list(ids[1:])) for ids in texts]


def mask_token(tokenizer: Any) -> int:
    """What stands for a masked token: the mask token, else the unknown, padding or end token."""
    names = ("mask_token_id", "unk_token_id", "pad_token_id", "eos_token_id")
    token = next((name for name in (getattr(tokenizer, name, None) for name in names) if name is not None), None)
    if token is None:
        raise UserError("The tokenizer has no special token that could stand for a masked one: add a mask token.")
    return int(token)


@dataclass(frozen=True)
class MaskedThought(Collator):
    """Batches in which a random share of the answer's tokens is masked in the input, but still to be predicted."""

    mask: int = 0
    share: float = 0.4
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = super().__call__(examples)
        inside = batch["labels"] != IGNORED
        hidden = inside & (torch.rand(inside.shape, generator=self.generator) < self.share)
        batch["input_ids"] = torch.where(hidden, torch.full_like(batch["input_ids"], self.mask), batch["input_ids"])
        return batch


def orpo_loss(
    logits: Float[Tensor, "twice_rows pos vocab"], labels: Int[Tensor, "twice_rows pos"], weight: float
) -> Float[Tensor, ""]:
    """ORPO (Hong et al. 2024): the answer's cross-entropy, plus ``weight`` times -log sigmoid of its log odds ratio.

    The first half of the rows are answers, the second half rejected ones; probabilities are means over tokens.
    """
    tokens = (labels[:, 1:] != IGNORED).sum(1)
    chosen, rejected = (answer_log_probs(logits, labels) / tokens).clamp(max=-1e-6).chunk(2)
    ratio = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
    half = len(labels) // 2
    return answer_loss(logits[:half], labels[:half]) - weight * torch.nn.functional.logsigmoid(ratio).mean()
