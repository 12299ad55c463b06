"""Trainings that leave a model frozen and make an attachment: side path, prompt spaces, instruction prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from interventions.recipe import as_adapted
from interventions.training.examples import answer_loss, examples_of
from interventions.training.soft_prompt import starting_vectors, unused_token
from interventions.training.trainer import Schedule, train_on_frozen
from workbench.engine.sites import resolve_layers
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.attachments.attachment import Attachment, Switch
from workbench.models.attachments.instruction_prompts import InstructionPrompts
from workbench.models.attachments.prompt_spaces import PromptSpaces
from workbench.models.attachments.side_path import SidePath
from workbench.models.attachments.stored import save_attachment
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts


@dataclass(frozen=True, eq=False)
class TrainedAttachment:
    """What was trained beside a model: ``workbench.load_pair(base, trained)`` sets it beside the base."""

    attachment: Attachment
    history: tuple[dict[str, float], ...] = field(repr=False)
    """Per step: ``step``, ``epoch``, ``loss`` in nats, ``learning_rate``, ``grad_norm``."""
    base: str = ""
    """The model's name."""

    def save(self, folder: str | Path) -> Path:
        """Write it as ``attachment.json`` and ``attachment.safetensors``, for ``load_pair(base, folder)``.

        Raises:
            UserError: The folder holds one already.
        """
        return save_attachment(self.attachment, folder, base=self.base)


@method(
    "train-side-path",
    group="training",
    question="Can small modules beside a frozen model, joined into one path, learn the task?",
    kind="training",
    papers=("Scattered or Connected? An Optimized Parameter-efficient Tuning Approach for Information Retrieval",),
    cost="a forward and backward pass per batch",
)
def train_side_path(
    model: Any,
    prompts: Any,
    *,
    layers: Sequence[int] | None = None,
    width: int = 8,
    connected: bool = True,
    end: bool = False,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> TrainedAttachment:
    """Learn a bottleneck module after each layer, every one handing its state on to the next, the model frozen.

    Ma et al. (2022) find scattered modules slow and unstable to train, and join them by modules alongside the model:
    ``connected=False`` is their comparison. ``probes.side_shares`` says what each module has a share in at each layer.

    Args:
        model: The model; its weights stay as they are.
        prompts: Rows with answers.
        layers: Layers that get a module; none named: all.
        width: Numbers in the state of the path.
        connected: Whether modules hand their state on.
        end: Whether the end-of-text token is part of an answer.
        schedule: How long and how fast.

    Returns:
        A :class:`TrainedAttachment` with a :class:`~workbench.models.attachments.side_path.SidePath`.

    Raises:
        UserError: A row has no answer, or the model has no such layer.

    Example:
        ``pair = workbench.load_pair(base, interventions.train_side_path(base, rows).save("./side"))``
    """
    adapted, schedule = as_adapted(model), schedule or Schedule()
    numbers = resolve_layers(None if layers is None else list(layers), adapted.n_layers)
    path = SidePath(adapted.d_model, numbers, width, connected, schedule.seed)
    return _trained(adapted, path, Prompts.of(prompts), end, schedule, progress)


@method(
    "train-prompt-spaces",
    group="training",
    question="Can a short prompt, fused with a low-rank one and seen through gated spaces, do the task?",
    kind="training",
    papers=("Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion",),
    cost="a forward and backward pass per batch",
)
def train_prompt_spaces(  # noqa: PLR0913 (a public call; all but two by keyword)
    model: Any,
    prompts: Any,
    *,
    tokens: int = 8,
    length: int = 32,
    rank: int = 4,
    spaces: int = 3,
    width: int = 8,
    also_read: Sequence[Any] = (),
    end: bool = False,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> TrainedAttachment:
    """Learn EPT's prompt (Lan et al. 2024) in front of each prompt of a frozen model.

    The short prompt starts at words of the prompts. ``trained.attachment.gates()`` reads the weights of the spaces.

    Args:
        model: The model; its weights stay as they are.
        prompts: Rows with answers.
        tokens: Rows of the short prompt.
        length: Rows of the low-rank prompt.
        rank: Its rank.
        spaces: Into how many spaces the fused prompt is projected.
        width: Numbers in each space.
        also_read: Other sets of prompts that will be read behind it, so that no placeholder stands in them.
        end: Whether the end-of-text token is part of an answer.
        schedule: How long and how fast.

    Returns:
        A :class:`TrainedAttachment` with a :class:`~workbench.models.attachments.prompt_spaces.PromptSpaces`.

    Raises:
        UserError: A row has no answer, or every token of the vocabulary stands in the prompts.

    Example:
        ``interventions.train_prompt_spaces(base, rows).attachment.gates()``
    """
    adapted, schedule, rows = as_adapted(model), schedule or Schedule(), Prompts.of(prompts)
    free = unused_token(adapted, rows, *(Prompts.of(others) for others in also_read))
    made = PromptSpaces(adapted.d_model, free, tokens, length, rank, spaces, width, schedule.seed)
    made.short.data.copy_(starting_vectors(adapted, rows, tokens, schedule.seed))
    return _trained(adapted, made, rows, end, schedule, progress)


@method(
    "train-instruction-prompts",
    group="training",
    question="Can a few prompt rows that every layer makes anew from the instruction do the task?",
    kind="training",
    papers=("IAPT: Instruction-Aware Prompt Tuning for Large Language Models",),
    cost="a forward and backward pass per batch",
)
def train_instruction_prompts(
    model: Any,
    prompts: Any,
    *,
    tokens: int = 4,
    width: int = 8,
    also_read: Sequence[Any] = (),
    end: bool = False,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> TrainedAttachment:
    """Learn IAPT's generators (Zhu et al. 2024): prompt rows of every layer as a summary of the instruction.

    ``probes.realised_prompts`` records the rows of each input, and ``trained.attachment.activations()`` what activation
    each layer learnt.

    Args:
        model: The model; its weights stay as they are.
        prompts: Rows with answers.
        tokens: Prompt rows behind each instruction.
        width: Numbers in a generator's bottleneck.
        also_read: Other sets of prompts that will be read before it, so that no placeholder stands in them.
        end: Whether the end-of-text token is part of an answer.
        schedule: How long and how fast.

    Returns:
        A :class:`TrainedAttachment` with an
        :class:`~workbench.models.attachments.instruction_prompts.InstructionPrompts`.

    Raises:
        UserError: A row has no answer, or every token of the vocabulary stands in the prompts.

    Example:
        ``interventions.train_instruction_prompts(base, rows).save("./iapt")``
    """
    adapted, schedule, rows = as_adapted(model), schedule or Schedule(), Prompts.of(prompts)
    free = unused_token(adapted, rows, *(Prompts.of(others) for others in also_read))
    made = InstructionPrompts(adapted.d_model, adapted.n_layers, free, tokens, width, schedule.seed)
    return _trained(adapted, made, rows, end, schedule, progress)


def _trained(
    model: AdaptedModel, attachment: Attachment, rows: Prompts, end: bool, schedule: Schedule, progress: Progress | None
) -> TrainedAttachment:
    examples = examples_of(rows, model.tokenizer, end=end)
    if attachment.rows is not None:
        bos = model.tokenizer.bos_token_id
        examples = [
            dataclasses.replace(example, prompt=attachment.rows.placed(example.prompt, bos)) for example in examples
        ]
    learned: dict[str, nn.Parameter] = dict(attachment.to(model.device).named_parameters())
    switch = Switch(attachment, model.hub)
    switch(True)
    try:
        history = train_on_frozen(
            model, learned, examples, answer_loss, schedule=schedule, what=attachment.kind,
            progress=progress or Silent(),
        )  # fmt: skip
    finally:
        switch(False)
    return TrainedAttachment(attachment.requires_grad_(False).eval(), history, model.name)
