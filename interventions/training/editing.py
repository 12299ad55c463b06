"""Editing facts by fine-tuning one tensor: breadth-first over mini-batches, as LocFT-BF (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from interventions.recipe import as_adapted
from interventions.training.examples import IGNORED, Collator, Example, answer_loss, examples_of
from interventions.training.masked import MaskedTraining
from interventions.training.selection import Masks
from interventions.training.trainer import Schedule, answer_logits
from interventions.weightspace.swapping import base_parameters
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.typing import Bool

Order = Literal["breadth", "depth"]
EDITING = Schedule(epochs=20, batch_size=2, learning_rate=1e-3)


@dataclass(frozen=True)
class EditedFacts:
    """The edited model, where it was edited, and how the loss went."""

    model: Any
    name: str
    """The one parameter that changed."""
    history: tuple[dict[str, float], ...]


@method(
    "edit-facts",
    group="training",
    question="Can these facts be written into one matrix?",
    kind="training",
    papers=("Fine-tuning Done Right in Model Editing",),
    cost="a forward and backward pass per batch and epoch",
    expands={"schedule": EDITING},
    example="--layer 1 --epochs 2",
)
def edit_facts(
    model: Any,
    prompts: Any,
    *,
    layer: int,
    module: str = "mlp.down_proj",
    order: Order = "breadth",
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> EditedFacts:
    """Train one matrix on each row's ``answer``, in place; :func:`probes.edit_sites` says which matrix serves best.

    Args:
        model: A bare model; one of its tensors is changed.
        prompts: The facts: rows with an answer.
        layer: The layer.
        module: Path of the matrix inside the layer.
        order: "breadth": epochs over mini-batches of all facts. "depth": one fact after the other, each for as many
            steps as there are epochs, which is how fine-tuning is usually (and worse) used as an editor.
        end: The answer ends with the end-of-text token, so that the edited model stops there.
        schedule: How long and how fast.

    Raises:
        UserError: A matrix that the model lacks, rows without answers, an unknown order.
    """
    adapted, schedule = as_adapted(model), schedule or EDITING
    examples = examples_of(prompts, adapted.tokenizer, end=end)
    name = site_name(adapted, layer, module)
    history = train_site(adapted, name, examples, order, schedule, progress or Silent())
    return EditedFacts(model, name, history)


def site_name(model: AdaptedModel, layer: int, module: str) -> str:
    """The parameter of a module of a layer. Raises :class:`UserError` with what the layer has."""
    stem = f"{model.hub.family.layers}.{layer}."
    matrices = [
        name.removeprefix(stem).removesuffix(".weight")
        for name, parameter in base_parameters(model.hf).items()
        if name.startswith(stem) and parameter.ndim == 2
    ]
    if not 0 <= layer < model.n_layers:
        raise UserError(f"Layer {layer} is out of range: the model has layers 0 to {model.n_layers - 1}.")
    if module not in matrices:
        raise UserError(f"Layer {layer} has no matrix {module!r}; it has {', '.join(matrices)}.")
    return f"{stem}{module}.weight"


def train_site(
    model: AdaptedModel, name: str, examples: Sequence[Example], order: Order, schedule: Schedule, progress: Progress
) -> tuple[dict[str, float], ...]:
    """Train the whole tensor ``name`` in place; the history of all steps."""
    masks = {name: torch.ones_like(base_parameters(model.hf)[name], dtype=torch.bool, device="cpu")}
    return train_entries(model, masks, examples, order, schedule, progress)


def train_entries(
    model: AdaptedModel, masks: Masks, examples: Sequence[Example], order: Order, schedule: Schedule, progress: Progress
) -> tuple[dict[str, float], ...]:
    """Train the entries in ``masks`` in place; the history of all steps."""
    if order not in ("breadth", "depth"):
        raise UserError(f"Unknown order {order!r}: it is breadth or depth.")
    if order == "breadth":
        return MaskedTraining(model, masks, schedule).run(examples, answer_loss, progress=progress)
    each = replace(schedule, batch_size=1)
    return tuple(
        entry
        for example in examples
        for entry in MaskedTraining(model, masks, each).run([example], answer_loss, progress=progress)
    )


def scattered_masks(model: AdaptedModel, module: str, seed: int) -> Masks:
    """Parameter -> entries drawn at random from ``module`` in all layers that have it, together about as many as one
    of these matrices has: the control of a site."""
    stem = f"{model.hub.family.layers}."
    parameters = {
        name: parameter
        for name, parameter in base_parameters(model.hf).items()
        if name.startswith(stem) and name.removeprefix(stem).partition(".")[2] == f"{module}.weight"
    }
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=draw) < 1 / len(parameters)
        for name, parameter in parameters.items()
    }


@torch.no_grad()
def written_right(model: AdaptedModel, examples: Sequence[Example], batch_size: int = 32) -> Bool[np.ndarray, " row"]:
    """Row by row: whether greedy decoding writes the whole answer (with its end, where the examples have one)."""
    collate, rows = Collator(pad_id(model.tokenizer)), []
    with model.active():
        for start in range(0, len(examples), batch_size):
            batch = collate(examples[start : start + batch_size])
            best = answer_logits(model, batch["input_ids"], batch["attention_mask"])[:, :-1].argmax(-1).cpu()
            labels = batch["labels"][:, 1:]
            rows.append(((best == labels) | (labels == IGNORED)).all(-1).numpy())
    return np.concatenate(rows)
