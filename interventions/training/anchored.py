"""Anchored fine-tuning: the answers are learnt while the next words stay near the base's (ASFT, Zhu et al. 2025)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from interventions.recipe import as_adapted
from interventions.training.examples import IGNORED, examples_of
from interventions.training.masked import MaskedTraining
from interventions.training.selection import Selector
from interventions.training.trainer import Schedule
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.typing import Float, Int, Tensor


@dataclass(frozen=True)
class AnchoredTuning:
    """A model trained near its base."""

    model: Any
    history: tuple[dict[str, float], ...]
    """Per step: ``step``, ``loss`` (what was minimised, nats), ``answer_loss`` (cross-entropy of the answers) and
    ``kl`` (KL of the trained model's next words from the base's, at the answers' tokens, nats)."""


_SCHEDULE = Schedule(epochs=3, learning_rate=1e-5)
"""How long and how fast, where nothing else is said."""


@method(
    "anchored-tuning",
    group="training",
    question="What does tuning still learn when it must stay near the base, and how far does it drift without?",
    kind="training",
    papers=("Anchored Supervised Fine-Tuning",),
    cost="two forward passes and a backward pass per batch; a second copy of the model while it trains",
    expands={"schedule": _SCHEDULE},
    example="--epochs 1",
)
def anchored_finetune(
    model: Any,
    prompts: Any,
    *,
    anchor: float = 0.1,
    reweight: bool = True,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> AnchoredTuning:
    """Train the matrices inside the layers, in place: the ``answer`` of each row, plus ``anchor`` times the KL.

    ``anchor=0, reweight=False`` is plain fine-tuning with the same log of the KL: the comparison.

    Args:
        model: A bare model; its weights are changed.
        prompts: Rows with an answer.
        anchor: Weight of KL(trained || base) at the answers' tokens.
        reweight: Weigh each token's loss by the probability the model gives it, as the paper does (no gradient goes
            through the weight).
        end: The model also learns to stop after the answer.
        schedule: How long and how fast.

    Raises:
        UserError: A negative anchor, rows without answers.
    """
    if anchor < 0:
        raise UserError(f"The anchor is a weight of 0 or more; got {anchor:g}.")
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    if hasattr(adapted.hf, "peft_config"):
        raise UserError("This model carries an adapter: give the bare model, whose weights are what is trained here.")
    examples = examples_of(prompts, adapted.tokenizer, end=end)
    masks = Selector(adapted, examples, "all", 1.0).masks()
    reference = copy.deepcopy(adapted.hf).requires_grad_(False).eval()
    log: list[tuple[float, float]] = []
    with _inputs_of(adapted) as inputs:
        objective = _objective(reference, inputs, anchor, reweight, log)
        history = MaskedTraining(adapted, masks, schedule).run(examples, objective, progress=progress)
    per_step = len(log) / max(1, len(history))
    means = [torch.tensor(log[round(i * per_step) : round((i + 1) * per_step)]).mean(0) for i in range(len(history))]
    logged = tuple(
        {**entry, "answer_loss": float(mean[0]), "kl": float(mean[1])}
        for entry, mean in zip(history, means, strict=True)
    )
    return AnchoredTuning(model, logged)


def anchored_loss(
    logits: Float[Tensor, "row pos vocab"],
    before: Float[Tensor, "row pos vocab"],
    labels: Int[Tensor, "row pos"],
    anchor: float,
    reweight: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """(what is minimised, cross-entropy of the answers, KL of the model from the base), each a mean over answer tokens.

    ``before``: logits of the base.
    """
    at = labels[:, 1:] != IGNORED
    now = logits[:, :-1][at].float().log_softmax(-1)
    base = before[:, :-1][at].float().log_softmax(-1)
    said = now.gather(-1, labels[:, 1:][at][:, None])[:, 0]
    weight = said.detach().exp() if reweight else torch.ones_like(said)
    kl = (now.exp() * (now - base)).sum(-1).mean()
    return -(weight * said).mean() + anchor * kl, -said.mean(), kl


def _objective(
    reference: Any, inputs: dict[str, Tensor], anchor: float, reweight: bool, log: list[tuple[float, float]]
) -> Callable[..., Tensor]:
    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            before = reference(**inputs, use_cache=False).logits
        loss, answer, kl = anchored_loss(logits, before, labels, anchor, reweight)
        log.append((float(answer.detach()), float(kl.detach())))
        return loss

    return objective


@contextmanager
def _inputs_of(model: AdaptedModel) -> Iterator[dict[str, Tensor]]:
    """What the model was called with last."""
    seen: dict[str, Tensor] = {}

    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        seen.update({name: kwargs[name] for name in ("input_ids", "attention_mask")})

    handle = model.inner.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
