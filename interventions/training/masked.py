"""Masked fine-tuning: only chosen entries of the weights are trained, with transformers' Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from interventions.recipe import as_adapted
from interventions.training.examples import Collator, answer_loss, examples_of
from interventions.training.masked_optimizer import MaskedAdamW
from interventions.training.selection import Masks, Selector
from interventions.training.trainer import Objective, OnFrozen, Schedule, frozen, seeded
from interventions.weightspace.swapping import base_parameters, find_parameter
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.resumable_trainer import ResumableTrainer
from workbench.typing import Bool, Tensor


@dataclass(frozen=True)
class MaskedTuning:
    """A model whose chosen entries were trained in place, and which they were."""

    model: Any
    """The model that was given; every entry outside the masks is as before, bit for bit."""
    masks: Mapping[str, Bool[Tensor, "*shape"]]
    """Parameter -> the entries of the last selection."""
    selections: int
    """How many selections there were: 1, and one more per refresh."""
    entries: int
    """How many entries the last selection trained."""
    history: tuple[dict[str, float], ...]
    """Per step: ``step``, ``epoch``, ``loss`` in nats, ``learning_rate``, ``grad_norm``."""


_SCHEDULE = Schedule(epochs=3, learning_rate=1e-4)
"""How long and how fast, where nothing else is said."""


@method(
    "masked-tuning",
    group="training",
    question="What does tuning learn when only a part of the weights may move?",
    kind="training",
    papers=(
        "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised "
        "Fine-Tuning",
        "HFT: Half Fine-Tuning for Large Language Models",
        "Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation",
        "TR-PTS: Task-Relevant Parameter and Token Selection for Efficient Tuning",
        "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation",
        "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels",
        "Few-shot Image Generation via Adaptation-Aware Kernel Modulation",
    ),
    cost="a forward and backward pass per batch, and one pass over the rows for rules that look at slopes",
    expands={"schedule": _SCHEDULE},
    example="--share 0.1 --epochs 1",
)
def masked_finetune(
    model: Any,
    prompts: Any,
    *,
    select: str = "reduced_magnitude",
    share: float = 0.05,
    refresh: int = 0,
    mask: Mapping[str, Tensor] | None = None,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> MaskedTuning:
    """Train only chosen entries of the matrices inside the layers on each row's ``answer``, in place.

    With the defaults it is LIFT (the largest entries after rank reduction); ``select="half", refresh=n`` is half
    fine-tuning with rounds of n steps; "budget" GreenTrainer; "fisher" TR-PTS; "small_weights" SaRA;
    "salient_channels" SCT; "free_rows" AdAM's map (rows whose gain a short probe adaptation has least information on
    are free, the others keep what they are; from image models, with gains in place of its low-rank modulation);
    "random", "gradient" and "large_weights" are the fixed masks of SHiRA. The control is
    ``select="random"`` with the same share.

    Example:
        >>> tuned = masked_finetune(model, rows, select="reduced_magnitude", share=0.05, refresh=50)

    Args:
        model: A bare model; its weights are changed.
        prompts: Rows with an answer.
        select: How entries are chosen: one of :data:`interventions.training.selection.RULES`.
        share: Share of each matrix's entries; of the backward pass's cost for "budget".
        refresh: Steps until the entries are chosen anew, the moments of those in both choices moving along; 0: never.
        mask: Your own entries instead: parameter -> bool mask or flat coordinates (as ``SelectionTrial.mask`` gives).
        end: The model also learns to stop after the answer.
        schedule: How long and how fast.

    Returns:
        The trained model with its masks.

    Raises:
        UserError: An unknown rule, a mask of another model, a share that leaves nothing, rows without answers.
    """
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    examples = examples_of(prompts, adapted.tokenizer, end=end)
    selector = Selector(adapted, examples, select, share, schedule.batch_size, schedule.seed)
    first = selector.masks() if mask is None else masks_of(adapted, mask)
    training = MaskedTraining(adapted, first, schedule)
    again = selector.masks if refresh and mask is None else None
    history = training.run(examples, answer_loss, refresh=refresh, select=again, progress=progress)
    return MaskedTuning(model, training.masks, training.selections, training.entries, history)


def masks_of(model: AdaptedModel, mask: Mapping[str, Tensor]) -> Masks:
    """Masks of whole tensors from bool masks or flat coordinates. Raises :class:`UserError` for another model's."""
    parameters, made = base_parameters(model.hf), {}
    for name, where in mask.items():
        parameter = find_parameter(parameters, name)
        if where.dtype == torch.bool:
            if where.shape != parameter.shape:
                raise UserError(
                    f"The mask of {name} is {list(where.shape)} and the weight {list(parameter.shape)}: it is another "
                    "model's."
                )
            made[name] = where.cpu()
            continue
        outside = where[(where < 0) | (where >= parameter.numel())]
        if outside.numel():
            raise UserError(f"The mask names entry {int(outside[0])} of {name}, which has {parameter.numel()} entries.")
        flat = torch.zeros(parameter.numel(), dtype=torch.bool)
        flat[where.cpu()] = True
        made[name] = flat.view(parameter.shape)
    if not any(bool(where.any()) for where in made.values()):
        raise UserError("The mask selects no entry: there is nothing to train.")
    return made


@dataclass
class MaskedTraining:
    """One training of the entries in ``masks``, in place; the model's flags and modes come back after.

    ``extra``: parameters beside the base's own (of adapters) that are trained whole.
    """

    model: AdaptedModel
    masks: Masks
    schedule: Schedule
    selections: int = 1
    extra: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """How many entries are trained now."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def run(
        self,
        examples: Any,
        objective: Objective,
        *,
        refresh: int = 0,
        select: Callable[[int], Masks] | None = None,
        until: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> tuple[dict[str, float], ...]:
        """Train; the history, one entry per step. ``until`` is called after every epoch and ends the training early."""
        if not examples:
            raise UserError("There is nothing to train on: give at least one row with an answer.")
        parameters = base_parameters(self.model.hf)
        held = {name: find_parameter(parameters, name) for name in self.masks}
        everything = {held[name]: mask for name, mask in self.masks.items()}
        everything |= {parameter: torch.ones_like(parameter, dtype=torch.bool) for parameter in self.extra.values()}
        optimizer = MaskedAdamW(everything, self.schedule.learning_rate)
        with self._open(list(everything)) as folder:
            trainer = ResumableTrainer(
                model=OnFrozen(self.model, {str(place): p for place, p in enumerate(everything)}, objective),
                args=self.schedule.arguments(folder, self.model.device),
                train_dataset=list(examples),
                data_collator=Collator(pad_id(self.model.tokenizer)),
                optimizers=(optimizer, None),
                beside=_Entries(self, held, optimizer),
            )
            if select is not None:
                trainer.add_callback(_Reselecting(self, held, optimizer, refresh, select))
            if until is not None:
                trainer.add_callback(_EndingEarly(self.model, until))
            return trainer.run("masked fine-tuning", progress or Silent())

    @contextmanager
    def _open(self, parameters: list[nn.Parameter]) -> Iterator[str]:
        with frozen(self.model), seeded(self.schedule.seed), tempfile.TemporaryDirectory() as folder:
            with self.model.active():
                try:
                    for parameter in parameters:
                        parameter.requires_grad_(True)
                    yield folder
                finally:
                    for parameter in parameters:
                        parameter.grad = None


@dataclass(frozen=True)
class _Entries:
    """What a checkpoint holds of the chosen entries."""

    training: MaskedTraining
    held: Mapping[str, nn.Parameter]
    optimizer: MaskedAdamW

    def state(self) -> dict[str, Any]:
        """The optimizer's own state, and how many selections there were."""
        return {"selections": self.training.selections, "entries": self.optimizer.held()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it back; the masks are where the entries are."""
        self.optimizer.hold(state["entries"])
        self.training.selections = state["selections"]
        masks = {}
        for (name, parameter), held in zip(self.held.items(), state["entries"], strict=False):
            places = held["places"]
            mask = torch.full((parameter.numel(),), places is None)
            if places is not None:
                mask[places.cpu()] = True
            masks[name] = mask.view(parameter.shape)
        self.training.masks = masks


class _Reselecting(TrainerCallback):  # type: ignore[misc]
    """Chooses the entries anew every ``every`` steps."""

    def __init__(
        self,
        training: MaskedTraining,
        held: Mapping[str, nn.Parameter],
        optimizer: MaskedAdamW,
        every: int,
        select: Callable[[int], Masks],
    ) -> None:
        self.training, self.held, self.optimizer = training, held, optimizer
        self.every, self.select = every, select

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step % self.every or state.global_step >= state.max_steps:
            return
        self.training.masks = self.select(self.training.selections)
        self.training.selections += 1
        self.optimizer.reselect({self.held[name]: mask for name, mask in self.training.masks.items()})


class _EndingEarly(TrainerCallback):  # type: ignore[misc]
    """Ends the training after an epoch that brought what it was for; the model is asked without dropout."""

    def __init__(self, model: AdaptedModel, until: Callable[[], bool]) -> None:
        self.model, self.until = model, until

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        modes = {module: module.training for module in self.model.hf.modules()}
        self.model.hf.eval()
        control.should_training_stop = self.until()
        for module, mode in modes.items():
            module.training = mode
