"""LoFiT's second stage: one learned vector for each of a few heads (Yin, Ye, Durrett 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import nn

from interventions.checks import Label, as_label, check_heads
from interventions.heads import HeadOffset
from interventions.recipe import Recipe, as_adapted
from interventions.training.examples import (
    Collator,
    Example,
    answer_log_probs,
    answer_loss,
    examples_of,
    preference_loss,
)
from interventions.training.trainer import Schedule, answer_logits, train_on_frozen
from workbench.errors import UserError, unknown_name
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Int, Tensor

_START = 1e-3


@dataclass(frozen=True)
class TrainedOffsets:
    """Learned offsets as a recipe, and how the loss went."""

    recipe: Recipe
    history: tuple[dict[str, float], ...]
    """Per step: ``step``, ``epoch``, ``loss`` in nats, ``learning_rate``, ``grad_norm``."""


@method(
    "train-offsets",
    group="training",
    question="Can offsets of chosen heads alone learn the task?",
    kind="training",
    papers=("LoFiT: Localized Fine-tuning on LLM Representations",),
    cost="a forward and backward pass per batch and epoch on the frozen model",
    expands={"schedule": Schedule},
    example="--heads L0H1,L1H0 --epochs 1",
)
def train_offsets(
    model: Any,
    prompts: Any,
    heads: Annotated[Iterable[Label], As("texts")],
    *,
    loss: str = "answer",
    beta: float = 0.5,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> TrainedOffsets:
    """Learn an offset [d_head] on each of ``heads`` (``"L1H2"`` or (1, 2)), at every position; the model is frozen.

    ``loss="answer"``: cross-entropy of each row's ``answer`` after its prompt. ``loss="dpo"``: its ``answer`` preferred
    to its ``distractor`` with ``beta`` (Rafailov et al. 2023), against log-probabilities of the untouched model that
    are computed once. Vectors start at N(0, 1e-3). The control is the same training on random heads.

    Args:
        model: A model; its weights stay as they are.
        prompts: Rows with an answer, and for "dpo" a distractor.
        heads: The heads that get an offset.
        loss: "answer" or "dpo".
        beta: Strength of dpo.
        end: The end-of-text token is part of an answer.
        schedule: How long and how fast.

    Raises:
        UserError: Heads the model lacks, or rows without answers.
    """
    adapted, schedule = as_adapted(model), schedule or Schedule()
    labels = [as_label(head, "head") for head in heads]
    if not labels:
        raise UserError("No head was chosen to train offsets on: give labels such as L1H2.")
    check_heads(adapted, labels)
    if loss not in ("answer", "dpo"):
        raise unknown_name("loss", loss, ("answer", "dpo"))
    rows = Prompts.of(prompts)
    examples = examples_of(rows, adapted.tokenizer, preferences=loss == "dpo", end=end)
    if loss == "dpo":
        examples = with_reference(adapted, examples, schedule.batch_size)
    generator = torch.Generator().manual_seed(schedule.seed)
    vectors = {head: nn.Parameter(torch.randn(adapted.d_head, generator=generator) * _START) for head in labels}
    with adapted.hooked(HeadOffset(dict(vectors)).hooks(adapted)):
        history = train_on_frozen(
            adapted, vectors, examples, _objective(loss, beta),
            schedule=schedule, what="offsets", progress=progress or Silent(),
        )  # fmt: skip
    learned = HeadOffset({head: vector.detach().cpu() for head, vector in vectors.items()})
    made = {"method": "LoFiT offsets", "loss": loss, "prompts": rows.hash, "schedule": schedule.as_dict()}
    return TrainedOffsets(Recipe([learned], {"training": made}), history)


def with_reference(model: AdaptedModel, examples: Sequence[Example], batch_size: int) -> list[Example]:
    """The examples with their answers' log-probabilities, in nats, under ``model`` as it is now."""
    collate, examples_with_reference = Collator(pad_id(model.tokenizer)), []
    mode = model.hf.training
    model.hf.eval()
    try:
        for start in range(0, len(examples), batch_size):
            some = list(examples[start : start + batch_size])
            batch = collate(some)
            with model.active(), torch.no_grad():
                logits = answer_logits(model, batch["input_ids"], batch["attention_mask"])
            chosen, rejected = answer_log_probs(logits, batch["labels"].to(logits.device)).chunk(2)
            pairs = zip(some, chosen.tolist(), rejected.tolist(), strict=True)
            examples_with_reference += [replace(example, reference=(right, wrong)) for example, right, wrong in pairs]
    finally:
        model.hf.train(mode)
    return examples_with_reference


def _objective(loss: str, beta: float) -> Any:
    return answer_loss if loss == "answer" else partial(dpo_loss, beta=beta)


def dpo_loss(
    logits: Float[Tensor, "twice_rows pos vocab"],
    labels: Int[Tensor, "twice_rows pos"],
    reference: Float[Tensor, "rows 2"],
    beta: float,
) -> Float[Tensor, ""]:
    """DPO over a batch of all answers, then all rejected ones, beside log-probabilities of the untouched model."""
    return preference_loss(answer_log_probs(logits, labels), reference, beta)
