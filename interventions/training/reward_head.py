"""A scalar reward on a frozen model's last state, learnt from preferences (Bradley and Terry 1952)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.model_selection import GroupKFold

from interventions.recipe import as_adapted
from interventions.training.examples import Example, examples_of
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, pad_left
from workbench.stats.intervals import Interval
from workbench.stats.shares import share_interval
from workbench.typing import Float, Int, Tensor

STEPS = 300
FOLDS = 5
CONTROLS = 5
"""Heads that are taught random preferences."""


@dataclass(frozen=True, eq=False)
class RewardHead:
    """A reward: ``weight`` [d_model] times the residual stream after ``layer`` at the answer's last token."""

    weight: Float[Tensor, " d_model"]
    layer: int
    held_out_right: Interval | None = None
    """Share of rows ranked right by heads that were fitted without the row's group; None with one group, or loaded."""
    random_preferences: float | None = None
    """The control: the same share for heads that were taught random preferences on the same rows."""

    def score(self, model: AdaptedModel, examples: Sequence[Example], batch_size: int = 32) -> Float[Tensor, " row"]:
        """The reward of each row's answer behind its prompt."""
        return last_states(model, examples, self.layer, batch_size) @ self.weight

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        save_file({"weight": self.weight.contiguous(), "layer": torch.tensor(self.layer)}, path)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> RewardHead:
        """The head in a file that :meth:`save` wrote. Raises :class:`UserError` for another file."""
        if not Path(path).is_file():
            raise UserError(f"There is no file {path}: give a reward head that RewardHead.save wrote.")
        held = load_file(path)
        if set(held) != {"weight", "layer"}:
            raise UserError(f"{path} is no reward head: it must hold weight and layer, as RewardHead.save writes.")
        return cls(held["weight"], int(held["layer"]))


@method(
    "train-reward-head",
    group="training",
    question="Can the preferred answer be read from the model's last state as one number?",
    kind="training",
    papers=("Improving Context-Aware Preference Modeling for Language Models",),
    cost="two forward passes per row; the fit costs nothing",
    example="--ridge 0.1",
)
def train_reward_head(
    model: Any,
    prompts: Any,
    *,
    layer: int | None = None,
    ridge: float = 1.0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> RewardHead:
    """Fit a scalar head on a frozen model so that each row's ``answer`` is worth more than its ``distractor``.

    The loss is -log sigmoid(r(answer) - r(distractor)) with an L2 penalty, which is convex: the fit does not hang on a
    seed. Whether it says anything of other rows is measured with it: up to five folds by group, each ranked by a head
    that did not see it, beside heads that learnt the same rows with random preferences. Where the same answers are
    asked for in two contexts with the preference turned around, a context-conditioned reward model is what can tell
    them apart.

    Args:
        model: A model; its weights stay as they are.
        prompts: Rows with answer and distractor.
        layer: The layer after which the head reads; by default the last.
        ridge: Strength of the L2 penalty, over the mean square of the states' differences.
        batch_size: Rows per forward pass.

    Returns:
        A :class:`RewardHead`, fitted on all rows, with the share of held-out rows that it ranks right.

    Raises:
        UserError: A row lacks an answer or a distractor.
    """
    adapted = as_adapted(model)
    place = adapted.n_layers - 1 if layer is None else layer
    if not 0 <= place < adapted.n_layers:
        raise UserError(f"There is no layer {place}: the model has {adapted.n_layers}, counted from 0.")
    rows = Prompts.of(prompts)
    chosen, rejected = both_answers(rows, adapted)
    apart = last_states(adapted, chosen, place, batch_size, progress) - last_states(
        adapted, rejected, place, batch_size, progress
    )
    right, control = _held_out(apart, ridge, rows.clusters)
    return RewardHead(_fitted(apart, ridge), place, right, control)


def both_answers(rows: Prompts, model: AdaptedModel) -> tuple[list[Example], list[Example]]:
    """Every row with its answer, and with its distractor."""
    examples = examples_of(rows, model.tokenizer, preferences=True, end=False)
    return examples, [Example(example.prompt, list(example.rejected or ())) for example in examples]


def last_states(
    model: AdaptedModel, examples: Sequence[Example], layer: int, batch_size: int, progress: Progress | None = None
) -> Float[Tensor, "row d_model"]:
    """The residual stream after ``layer`` at the last token of each row's answer."""
    texts = [[*example.prompt, *example.answer] for example in examples]
    states = torch.zeros(len(texts), model.d_model)
    plan, bar = batches([len(text) for text in texts], batch_size), progress or Silent()
    bar.start("states of answers", len(plan))
    for rows in plan:
        held: list[Tensor] = []

        def read(value: Tensor, ctx: Any, held: list[Tensor] = held) -> None:  # noqa: ARG001
            held.append(value[:, -1].detach().float().cpu())

        with torch.no_grad(), model.hooked([SiteHook(Site("resid_post", layer), read)], stop=True):
            model.forward(pad_left([texts[row] for row in rows], pad_id(model.tokenizer)), logits=None)
        states[rows] = held[0]
        bar.advance()
    bar.finish()
    return states


def _held_out(
    apart: Float[Tensor, "row d_model"], ridge: float, clusters: Int[np.ndarray, " row"]
) -> tuple[Interval | None, float | None]:
    """Share of rows whose answer a head fitted on other groups prefers, and that of heads of random preferences."""
    groups = len(np.unique(clusters))
    if groups < 2:
        return None, None
    folds = list(GroupKFold(min(FOLDS, groups)).split(clusters, groups=clusters))

    def hits(signs: Float[Tensor, " row"]) -> Float[np.ndarray, " row"]:
        right = np.zeros(len(apart))
        for seen, unseen in folds:
            weight = _fitted(apart[seen] * signs[seen, None], ridge)
            right[unseen] = (apart[unseen] @ weight > 0).numpy()
        return right

    draws = torch.Generator().manual_seed(0)
    random = [torch.randint(0, 2, (len(apart),), generator=draws) * 2.0 - 1 for _ in range(CONTROLS)]
    control = float(np.mean([hits(signs) for signs in random]))
    return share_interval(hits(torch.ones(len(apart))), clusters=clusters), control


def _fitted(apart: Float[Tensor, "row d_model"], ridge: float) -> Float[Tensor, " d_model"]:
    wide = apart.double()
    penalty = ridge * float(wide.square().mean().clamp_min(1e-30))
    weight = torch.zeros(wide.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -torch.nn.functional.logsigmoid(wide @ weight).mean() + penalty * weight.square().sum() / len(wide)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach().float()
