"""Editing facts by fine-tuning one tensor: breadth-first over mini-batches, as LocFT-BF (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch

from interventions.recipe import as_adapted
from interventions.training.examples import IGNORED, Collator, Example, answer_loss, examples_of
from interventions.training.masked import MaskedTraining
from interventions.training.selection import Masks
from interventions.training.trainer import Schedule, answer_logits
from interventions.weightspace.swapping import base_parameters
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Bool

Order = Literal["breadth", "depth"]
EDITING = Schedule(epochs=20, batch_size=2, learning_rate=1e-3)
KEPT_TOKENS = 8
"""Of each reply that should stay, so many tokens are trained."""
_BATCH = 32


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
def edit_facts(  # noqa: PLR0913
    model: Any,
    prompts: Any,
    *,
    layer: int,
    module: str = "mlp.down_proj",
    order: Order = "breadth",
    keep: Annotated[Any, As("prompts")] = None,
    end: bool = True,
    early: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> EditedFacts:
    """Train one matrix on each row's ``answer``, in place; :func:`probes.edit_sites` says which matrix serves best.

    What is near the facts changes with them (questions of the same form most), unless ``keep`` names some of it.

    Example:
        >>> edited = edit_facts(model, facts, layer=20, keep=["What is the capital of Greece?"])  # doctest: +SKIP

    Args:
        model: A bare model; one of its tensors is changed.
        prompts: The facts: rows with an answer.
        layer: The layer.
        module: Path of the matrix inside the layer.
        order: "breadth": epochs over mini-batches of all facts. "depth": one fact after the other, each for as many
            steps as there are epochs, which is how fine-tuning is usually (and worse) used as an editor.
        keep: Prompts beside the facts whose replies should stay: the first tokens that the unedited model writes to
            each are trained along. On SmolLM2 this was not seen to protect others.
        end: The answer ends with the end-of-text token, so that the edited model stops there.
        early: Stop after the first epoch that has every fact written right, before more steps cost more elsewhere.
        schedule: How long and how fast.

    Raises:
        UserError: A matrix that the model lacks, rows without answers, an unknown order.
    """
    adapted, schedule = as_adapted(model), schedule or EDITING
    examples = examples_of(prompts, adapted.tokenizer, end=end)
    name = site_name(adapted, layer, module)
    replies = [] if keep is None else own_replies(adapted, Prompts.of(keep), KEPT_TOKENS)
    edit = Edit(examples, tuple(replies), order, early, schedule)
    return EditedFacts(model, name, edit.of_tensor(adapted, name, progress or Silent()))


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


@dataclass(frozen=True)
class Edit:
    """What is written, what is kept beside it, and how; the same edit can be made at one site after the other."""

    facts: Sequence[Example]
    kept: Sequence[Example] = ()
    order: Order = "breadth"
    early: bool = True
    schedule: Schedule = EDITING

    def __post_init__(self) -> None:
        if self.order not in ("breadth", "depth"):
            raise UserError(f"Unknown order {self.order!r}: it is breadth or depth.")

    def of_tensor(self, model: AdaptedModel, name: str, progress: Progress) -> tuple[dict[str, float], ...]:
        """Train the whole tensor ``name`` in place; the history of all steps."""
        whole = torch.ones_like(base_parameters(model.hf)[name], dtype=torch.bool, device="cpu")
        return self.of_entries(model, {name: whole}, progress)

    def of_entries(self, model: AdaptedModel, masks: Masks, progress: Progress) -> tuple[dict[str, float], ...]:
        """Train the entries in ``masks`` in place; the history of all steps."""
        if self.order == "breadth":
            return self._trained(model, masks, self.facts, self.schedule, progress)
        each = replace(self.schedule, batch_size=1)
        return tuple(entry for fact in self.facts for entry in self._trained(model, masks, [fact], each, progress))

    def _trained(
        self, model: AdaptedModel, masks: Masks, facts: Sequence[Example], schedule: Schedule, progress: Progress
    ) -> tuple[dict[str, float], ...]:
        return MaskedTraining(model, masks, schedule).run(
            [*facts, *(reply for reply in self.kept if reply.answer)],
            answer_loss,
            until=(lambda: bool(written_right(model, facts).all())) if self.early else None,
            progress=progress,
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


def own_replies(model: AdaptedModel, prompts: Prompts, tokens: int) -> list[Example]:
    """The first greedy ``tokens`` that the model, as it is now, writes to each prompt: rows to train or to compare."""
    replies = generate_replies(Subject("unedited", model), prompts, Decoding(tokens), Work(_BATCH))
    ids = encode(prompts, model.tokenizer, model.max_positions)
    return [Example(prompt, list(samples[0].ids)) for prompt, samples in zip(ids, replies, strict=True)]


@torch.no_grad()
def written_right(model: AdaptedModel, examples: Sequence[Example]) -> Bool[np.ndarray, " row"]:
    """Row by row: whether greedy decoding writes the whole answer (with its end, where the examples have one)."""
    collate, rows = Collator(pad_id(model.tokenizer)), []
    with model.active():
        for start in range(0, len(examples), _BATCH):
            batch = collate(examples[start : start + _BATCH])
            best = answer_logits(model, batch["input_ids"], batch["attention_mask"])[:, :-1].argmax(-1).cpu()
            labels = batch["labels"][:, 1:]
            rows.append(((best == labels) | (labels == IGNORED)).all(-1).numpy())
    return np.concatenate(rows)
