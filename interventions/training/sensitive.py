"""Sensitivity-aware tuning: single entries where few matter, a LoRA where many do (SPT, He et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interventions.recipe import as_adapted
from interventions.training.examples import answer_loss, examples_of
from interventions.training.masked import MaskedTraining
from interventions.training.selection import Masks, Selector, trainable_names
from interventions.training.trainer import Schedule
from interventions.weightspace.selection_scores import Evidence
from interventions.weightspace.swapping import base_parameters
from workbench.errors import UserError
from workbench.methods import method
from workbench.progress import Progress


@dataclass(frozen=True)
class SensitivityPlan:
    """What each matrix gets: ``counts`` of its entries among the most sensitive, ``lora`` matrices, ``masks`` of the
    others (none where no entry is sensitive)."""

    counts: dict[str, int]
    lora: tuple[str, ...]
    masks: Masks


@dataclass(frozen=True)
class SensitiveTuning:
    """The trained model (a ``PeftModel`` where some matrices got a LoRA), what was trained, and how the loss went."""

    model: Any
    plan: SensitivityPlan
    history: tuple[dict[str, float], ...]


def sensitivity_plan(
    evidence: Callable[[str], Evidence], names: Sequence[str], share: float, rank: int
) -> SensitivityPlan:
    """The ``share`` of all entries with the largest squared slopes; a matrix with at least as many of them as a LoRA of
    ``rank`` has parameters gets the LoRA, any other a mask of exactly those entries.

    Args:
        evidence: Name -> what is known of the matrix.
        names: The matrices.
        share: Share of all entries: the budget.
        rank: Rank of the LoRAs.
    """
    squares = {name: evidence(name).gradient.square() for name in names}
    total = sum(square.numel() for square in squares.values())
    wanted = max(1, round(share * total))
    largest = torch.cat([square.reshape(-1).topk(min(wanted, square.numel())).values for square in squares.values()])
    line = float(largest.topk(wanted).values[-1])
    counts = {name: int((square >= max(line, 1e-45)).sum()) for name, square in squares.items()}
    if not any(counts.values()):
        raise UserError("No weight has a slope on these rows: give rows whose answers the model does not know yet.")
    lora = tuple(name for name in names if counts[name] >= rank * sum(squares[name].shape[-2:]))
    masks = {name: squares[name] >= line for name in names if counts[name] and name not in lora}
    return SensitivityPlan(counts, lora, masks)


_SCHEDULE = Schedule(epochs=3, learning_rate=1e-4)
"""How long and how fast, where nothing else is said."""


@method(
    "sensitive-tuning",
    group="training",
    question="Where do single entries do, and where is a LoRA worth its parameters?",
    kind="training",
    papers=("Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning",),
    cost="one pass over the rows for the slopes, then a forward and backward pass per batch",
    expands={"schedule": _SCHEDULE},
    example="--share 0.05 --epochs 1",
)
def sensitive_finetune(
    model: Any,
    prompts: Any,
    *,
    share: float = 0.01,
    rank: int = 4,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> SensitiveTuning:
    """Train the most sensitive ``share`` of the weights: entries one by one, or a LoRA where a matrix holds many.

    Args:
        model: A bare model; it is changed, and wrapped by PEFT where a matrix gets a LoRA.
        prompts: Rows with an answer.
        share: Share of all entries of the matrices inside the layers that the budget is.
        rank: Rank of the LoRAs.
        end: The model also learns to stop after the answer.
        schedule: How long and how fast.

    Raises:
        UserError: Rows without answers, or no slope at all.
    """
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    examples = examples_of(prompts, adapted.tokenizer, end=end)
    names = trainable_names(adapted)
    selector = Selector(adapted, examples, "sensitivity", share, schedule.batch_size, schedule.seed)
    plan = sensitivity_plan(selector.evidence(names), names, share, rank)
    wrapped = _with_loras(adapted.hf, plan.lora, rank, schedule.seed)
    training = MaskedTraining(adapted, plan.masks, schedule, extra=_lora_parameters(adapted.hf) if plan.lora else {})
    history = training.run(examples, answer_loss, progress=progress)
    return SensitiveTuning(wrapped, plan, history)


def _with_loras(hf: Any, names: Sequence[str], rank: int, seed: int) -> Any:
    """``hf``, or a PeftModel around it with a LoRA on each of those matrices."""
    if not names:
        return hf
    import peft

    targets = [name.removesuffix(".weight") for name in names]
    if absent := [name for name in names if name not in base_parameters(hf)]:
        raise UserError(f"{absent[0]} is no matrix of a module, so PEFT can put no LoRA there: give a larger rank.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(hf, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))


def _lora_parameters(hf: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in hf.named_parameters() if ".lora_" in name}
