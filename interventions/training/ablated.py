"""Concept ablation fine-tuning (CAFT, Casademunt et al. 2025): train while directions are taken out, run without."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from interventions.base import Intervention
from interventions.concept_ablation import ConceptAblation
from interventions.recipe import Recipe, as_adapted
from interventions.training.examples import Collator, examples_of
from interventions.training.masked_optimizer import holding_small_steps
from interventions.training.trainer import Schedule, seeded
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.resumable_trainer import ResumableTrainer
from workbench.typing import Float, Tensor

Ablation = Recipe | Intervention | Mapping[int, Tensor]
"""A recipe, one intervention, or layer -> directions [k, d_model] taken out of the residual stream after that layer."""


@contextmanager
def ablated_training(model: Any, ablation: Ablation) -> Iterator[Recipe]:
    """Ablate inside the context, for any training loop: transformers' Trainer, PEFT, or your own.

    ``model``: an AdaptedModel, a Hugging Face model or a ``PeftModel``. Gradients pass through, and along the
    directions they are 0 below the ablated layer. After the context the model carries no hook. Each forward pass and
    its backward pass must both be inside. Yields the recipe that is applied.

    CAFT keeps what is trained from using the directions downstream of the layer. It does not stop trainable layers
    before it from writing the concept along other directions, nor take out what the model read there already:
    ablate at several layers, and probe for the concept afterwards. Under Adam the weights still move along the
    directions, although their gradient there is 0.
    """
    recipe = ablation_recipe(ablation)
    with recipe.applied(model):
        yield recipe


def ablation_recipe(ablation: Ablation) -> Recipe:
    """``ablation`` as a recipe. Raises :class:`UserError` when there is nothing to ablate."""
    if isinstance(ablation, Recipe):
        return ablation
    if isinstance(ablation, Intervention):
        return Recipe([ablation])
    if not isinstance(ablation, Mapping):
        raise UserError(f"An ablation is a recipe, or layers with their directions; got {type(ablation).__name__}.")
    if not ablation:
        raise UserError("No directions were given: map layers to directions, as {8: tensor of [k, d_model]}.")
    return Recipe([ConceptAblation(layer, directions) for layer, directions in sorted(ablation.items())])


def random_directions(like: Mapping[int, Tensor], seed: int = 0) -> dict[int, Tensor]:
    """As many random orthonormal directions at the same layers: the control."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer, directions in sorted(like.items()):
        wide = directions if directions.ndim == 2 else directions[None]
        noise = torch.randn(wide.shape[-1], len(wide), generator=generator, dtype=torch.float64)
        made[layer] = torch.linalg.qr(noise)[0].T.to(wide.dtype)
    return made


@dataclass(frozen=True)
class FineTuned:
    """A model trained with (or, as the control, without) an ablation."""

    model: Any
    """The ``PeftModel``, or the Hugging Face model itself after full fine-tuning. It needs no hook."""
    history: tuple[dict[str, float], ...]
    base_means: dict[int, Float[Tensor, " k"]]
    """Layer -> mean coordinate of the untrained model along each ablated direction. Zeroing one that is far from 0
    shifts the model; ``ConceptAblation(mean=...)`` sets it to its mean instead."""


_SCHEDULE = Schedule(epochs=1, learning_rate=1e-4)
"""How long and how fast, where nothing else is said."""


@method(
    "caft",
    group="training",
    question="What does tuning learn when a direction is ablated meanwhile?",
    kind="training",
    papers=("Steering Out-of-Distribution Generalization with Concept Ablation Fine-Tuning",),
    cost="a forward and backward pass per batch and epoch, and a pass over the rows for the means",
    expands={"schedule": _SCHEDULE},
    example="--ablation ablation.safetensors --epochs 1",
)
def caft_finetune(
    model: Any,
    prompts: Any,
    ablation: Annotated[Ablation | None, As("recipe")] = None,
    *,
    lora: Annotated[Any, As("lora")] = None,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> FineTuned:
    """Fine-tune on each row's ``answer`` with ``ablation`` in force; None trains plainly, which is the comparison.

    For other losses, data or trainers use :func:`ablated_training` around your own loop.

    Args:
        model: A model; without ``lora`` its weights are changed.
        prompts: Rows with an answer.
        ablation: What is ablated while it trains: a recipe, an intervention, or layer -> directions.
        lora: A PEFT config (on the command line the rank of a LoRA on every linear layer), put on the model first and
            trained alone; None trains whatever parameters of the model require gradients.
        schedule: How long and how fast.
    """
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    examples = examples_of(prompts, adapted.tokenizer, end=end)
    recipe = None if ablation is None else ablation_recipe(ablation)
    means = {} if recipe is None else _base_means(adapted, recipe, Prompts.of(prompts))
    trained = adapted.hf if lora is None else with_lora(adapted, lora, schedule.seed)
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        raise UserError("No parameter of the model is trainable: give lora=LoraConfig(...), or unfreeze some.")
    modes = {module: module.training for module in trained.modules()}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for module, mode in modes.items():
            stack.callback(setattr, module, "training", mode)
        stack.enter_context(seeded(schedule.seed))
        trainer = ResumableTrainer(
            model=trained,
            args=schedule.arguments(folder, adapted.device),
            train_dataset=examples,
            data_collator=Collator(pad_id(adapted.tokenizer)),
            **holding_small_steps(trained.parameters(), schedule.learning_rate),
        )
        stack.enter_context(adapted.active() if recipe is None else recipe.applied(adapted))
        history = trainer.run("fine-tuning", progress or Silent())
    return FineTuned(trained, history, means)


def with_lora(model: AdaptedModel, lora: Any, seed: int) -> Any:
    """``model`` with a new adapter of ``seed``. Raises :class:`UserError` where it carries one already."""
    import peft

    if hasattr(model.hf, "peft_config"):
        raise UserError("This model carries an adapter already: give the bare model, or lora=None to train that one.")
    with seeded(seed):
        return peft.get_peft_model(model.hf, lora)


@torch.no_grad()
def _base_means(model: AdaptedModel, recipe: Recipe, prompts: Prompts) -> dict[int, Tensor]:
    from interventions.checks import resolved, site_in
    from interventions.directions import orthonormal
    from workbench.engine.hub import SiteHook
    from workbench.prompts.encode import batches, encode, pad_left

    sums: dict[int, Tensor] = {}
    count = 0
    hooks = []
    for intervention in recipe:
        if isinstance(intervention, ConceptAblation) and not intervention.neutral:
            layer, basis = resolved(model, intervention.layer), orthonormal(intervention.directions)
            hooks.append(SiteHook(site_in(model, intervention.site, intervention.layer), _summing(sums, layer, basis)))
    ids = encode(prompts, model.tokenizer, model.max_positions)
    with model.hooked(hooks, stop=True):
        for rows in batches([len(row) for row in ids], 16):
            batch = pad_left([ids[row] for row in rows], pad_id(model.tokenizer))
            model.forward(batch, logits=None)
            count += int(batch.attention_mask.sum())
    return {layer: total / count for layer, total in sums.items()}


def _summing(sums: dict[int, Tensor], layer: int, basis: Float[Tensor, "k d_model"]) -> Any:
    def read(value: Tensor, ctx: Any) -> None:
        coordinates = value[ctx.real].double().cpu() @ basis.cpu().T
        sums[layer] = sums.get(layer, 0) + coordinates.sum(0)

    return read
