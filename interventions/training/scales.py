"""LoFiT's first stage: how much scaling each head helps the task (Yin, Ye, Durrett 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from interventions.recipe import as_adapted
from interventions.training.examples import answer_loss, examples_of
from interventions.training.trainer import Schedule, train_on_frozen
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.methods import method
from workbench.progress import Progress, Silent
from workbench.typing import Float, Tensor

_START = 1e-3


@dataclass(frozen=True)
class HeadScales:
    """A of z <- (1 + A) z for every head, and how the loss went."""

    scales: Float[Tensor, "layer head d_head"]
    history: tuple[dict[str, float], ...]
    """Per step: ``step``, ``epoch``, ``loss`` (cross-entropy in nats plus the penalty), ``learning_rate``."""

    def scores(self) -> Float[Tensor, "layer head"]:
        """The L2 norm of each head's A. Rank by it: with Adam unneeded entries jitter around 0 and never reach it."""
        return self.scales.norm(dim=-1)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        save_file({"scales": self.scales.contiguous()}, path)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> HeadScales:
        """The scales in a file that :meth:`save` wrote; the history is not in it."""
        return cls(load_file(path)["scales"], ())

    def best(self, count: int) -> list[str]:
        """Labels of the ``count`` heads with the largest score, best first."""
        scores = self.scores()
        order = scores.flatten().argsort(descending=True, stable=True)[:count].tolist()
        return [f"L{place // scores.shape[1]}H{place % scores.shape[1]}" for place in order]


_SCHEDULE = Schedule(learning_rate=5e-3)
"""How long and how fast, where nothing else is said."""


@method(
    "train-head-scales",
    group="training",
    question="Can scales of chosen heads alone learn the task?",
    kind="training",
    papers=("LoFiT: Localized Fine-tuning on LLM Representations",),
    cost="a forward and backward pass per batch and epoch on the frozen model",
    expands={"schedule": _SCHEDULE},
    example="--epochs 1",
)
def train_head_scales(
    model: Any,
    prompts: Any,
    *,
    penalty: float = 1e-3,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> HeadScales:
    """Learn A [layer, head, d_head] with z <- (1 + A) z at every position, the model frozen.

    The loss is the cross-entropy of each row's ``answer`` plus ``penalty`` * sum |A|; the sum grows with the model, so
    a penalty does not carry over to another size. A starts at N(0, 1e-3).

    Args:
        model: A model; its weights stay as they are.
        prompts: Rows with an answer.
        penalty: Weight of sum |A|.
        end: The end-of-text token is part of an answer.
        schedule: How long and how fast.
    """
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    examples = examples_of(prompts, adapted.tokenizer, end=end)
    generator = torch.Generator().manual_seed(schedule.seed)
    shape = (adapted.n_layers, adapted.n_heads, adapted.d_head)
    scales = nn.Parameter(torch.randn(shape, generator=generator) * _START)

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        return answer_loss(logits, labels) + penalty * scales.abs().sum().to(logits.device)

    hooks = [SiteHook(Site("z", layer), _scaling(scales, layer), edit=True) for layer in range(adapted.n_layers)]
    with adapted.hooked(hooks):
        history = train_on_frozen(
            adapted, {"scales": scales}, examples, objective,
            schedule=schedule, what="head scales", progress=progress or Silent(),
        )  # fmt: skip
    return HeadScales(scales.detach().cpu(), history)


def _scaling(scales: nn.Parameter, layer: int) -> Any:
    def edit(value: Tensor, ctx: ForwardContext) -> Tensor:  # noqa: ARG001
        return value * (1 + scales[layer].to(value.device)).to(value.dtype)

    return edit
