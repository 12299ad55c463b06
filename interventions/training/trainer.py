"""Training a few parameters of ours on a frozen model, with transformers' Trainer."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from interventions.training.examples import Collator, Example
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress
from workbench.resumable_trainer import ResumableTrainer
from workbench.typing import Tensor

Objective = Callable[..., Tensor]
"""(logits [row, pos, vocab], batch) -> the loss, a scalar."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: AdamW without weight decay, the learning rate falling linearly to 0."""

    epochs: int | float = 5
    batch_size: int = 8
    learning_rate: float = 1e-2
    warmup_steps: int = 0
    accumulate: int = 1
    """Batches per step."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "accumulate"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}: give a number above 0.")

    def arguments(self, folder: str, device: torch.device) -> TrainingArguments:
        """The same as transformers' arguments; nothing is printed, saved or reported."""
        made = TrainingArguments(
            output_dir=folder,
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulate,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            weight_decay=0.0,
            lr_scheduler_type="linear",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            label_names=["labels"],
            use_cpu=device.type == "cpu",
            seed=self.seed,
        )
        made._n_gpu = min(made.n_gpu, 1)  # with several, Trainer would train copies of the model, which no hook is on
        return made

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


class OnFrozen(nn.Module):
    """Parameters of ours beside a frozen model that is no submodule, so that only ours are trained and moved."""

    def __init__(self, model: AdaptedModel, learned: dict[str, nn.Parameter], objective: Objective) -> None:
        super().__init__()
        self.learned = nn.ParameterDict(learned)
        self._frozen = [model]
        self._objective = objective

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, reference: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of a batch, under the key that Trainer looks for and on its device (the model may be elsewhere)."""
        logits = answer_logits(self._frozen[0], input_ids, attention_mask)
        batch = {"labels": labels.to(logits.device)}
        if reference is not None:
            batch["reference"] = reference.to(logits.device)
        return {"loss": self._objective(logits, **batch).to(input_ids.device)}

    def train(self, mode: bool = True) -> OnFrozen:
        """Training mode for the frozen model too: gradient checkpointing and dropout look at it."""
        super().train(mode)
        self._frozen[0].hf.train(mode)
        return self


def answer_logits(model: AdaptedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits [row, pos, vocab] of a padded batch, without a cache."""
    place = model.device
    return model.inner(input_ids=input_ids.to(place), attention_mask=attention_mask.to(place), use_cache=False).logits


def train_on_frozen(
    model: AdaptedModel,
    learned: dict[str, nn.Parameter],
    examples: Sequence[Example],
    objective: Objective,
    *,
    schedule: Schedule,
    what: str,
    progress: Progress,
) -> tuple[dict[str, float], ...]:
    """Train ``learned`` in place, while hooks that use them are on ``model``; returns the history.

    The model's weights, modes, ``requires_grad`` flags and the process's random states are as before after it.
    """
    if not examples:
        raise UserError("There is nothing to train on: give at least one row with an answer.")
    with frozen(model), seeded(schedule.seed), tempfile.TemporaryDirectory() as folder:
        trainer = ResumableTrainer(
            model=OnFrozen(model, learned, objective),
            args=schedule.arguments(folder, model.device),
            train_dataset=list(examples),
            data_collator=Collator(pad_id(model.tokenizer)),
        )
        return trainer.run(what, progress)


@contextmanager
def frozen(model: AdaptedModel) -> Iterator[None]:
    """No weight of ``model`` takes gradients inside; flags and modes come back after."""
    hf = model.hf
    flags = {parameter: parameter.requires_grad for parameter in hf.parameters()}
    modes = {module: module.training for module in hf.modules()}
    with ExitStack() as stack:
        for module, mode in modes.items():
            stack.callback(setattr, module, "training", mode)
        for parameter, flag in flags.items():
            stack.callback(parameter.requires_grad_, flag)
            parameter.requires_grad_(False)
        if any(getattr(module, "gradient_checkpointing", False) for module in modes):
            # reentrant checkpointing follows gradients only through inputs that need them
            model.inner.enable_input_require_grads()
            stack.callback(model.inner.disable_input_require_grads)
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fixed random states inside, the earlier ones after; Trainer seeds the whole process."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
