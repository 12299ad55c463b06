"""Dose and response: a behaviour at a list of strengths, beside random recipes and beside what else moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from workbench.argument_checks import check_pair, read_options
from workbench.behaviour.dose_shape import DoseShape, shape_of
from workbench.behaviour.dosing import Dose, Followed, next_token_scores, over_strengths, text_scores
from workbench.behaviour.held_logits import HeldLogits
from workbench.behaviour.metrics import SHARES
from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.scorers import Behaviour, Score
from workbench.behaviour.subject import Subject, Work
from workbench.behaviour.texts import TextRule
from workbench.errors import UserError, unknown_name
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.results import Provenance, Result
from workbench.stats.bootstrap import mean_interval, statistic_interval
from workbench.stats.controls import MIN_DRAWS
from workbench.stats.intervals import Interval
from workbench.stats.shares import share_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go


ROUNDING = 1e-6
"""Changes this small, relative to 1 + the value, come from rows sharing a batch; they count as none."""


@dataclass(frozen=True)
class DoseOptions:
    """Options of :func:`dose_response`."""

    neutral: Annotated[Any, As("prompts")] = None
    """Texts whose perplexity is followed beside the behaviour."""
    out_of_scope: Annotated[Any, As("prompts")] = None
    """Prompts that should not change: followed by KL(steered || as it is) of the next token."""
    max_new_tokens: int = 32
    refusal: TextRule = is_refusal
    progress: Progress | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class DoseResponse(Result):
    """Behaviour at every strength.

    ``table``: one line per strength: estimate, low, high, n (a 95 % band over prompts); ``change`` from the model as it
    is, paired, with its interval; ``control``, ``control_low``, ``control_high``: mean and 95 % range over random
    recipes; ``side`` with its interval and ``side_control`` with its range: what else moved. Missing columns were not
    asked for. ``values`` [strength, prompt], ``control_values`` [draw, strength, prompt].
    """

    metric: str
    side: str
    """What the side effect is, or an empty text."""
    control: str
    """What the control is, or an empty text."""
    start: float
    """The metric of the model as it is."""
    values: np.ndarray
    control_values: np.ndarray

    title: ClassVar[str] = "Dose and response"

    def shape(self, seed: int = 0) -> DoseShape:
        """Whether the behaviour follows the strength linearly, saturates, overshoots, or stays flat; see
        :func:`workbench.behaviour.dose_shape.shape_of`."""
        return shape_of(self.table["strength"].to_numpy(), self.values, seed=seed)

    def figure(self) -> go.Figure:
        """Behaviour against strength with its band and the control's, and the side effect below."""
        from workbench.figures.behaviour_dose import dose_figure

        return dose_figure(self.table, metric=self.metric, side=self.side, start=self.start)

    def to_json(self) -> str:
        """Table, what was followed, and provenance as JSON with plain lists (NaN becomes null)."""
        said = {"metric": self.metric, "side": self.side, "control": self.control, "start": self.start}
        return json.dumps({"result": self.title, **said, **self._plain(self.table)}, default=str)

    def summary(self) -> str:
        """What was followed over how many strengths."""
        beside = f"; control: {self.control}" if self.control else ""
        return f"{self.metric} at {len(self.table)} strengths, n = {int(self.table['n'].max())} prompts{beside}"


@method(
    "dose-response",
    group="behaviour",
    question="How does behaviour follow the strength of a recipe?",
    kind="behaviour",
    cost="one batch for all strengths, and for those of each control",
    example="--dose offset.safetensors --strengths 0.5,1",
)
def dose_response(
    pair: ModelPair,
    prompts: Any,
    dose: Annotated[Any, As("recipe")],
    strengths: Annotated[Sequence[int | float], As("numbers")],
    *,
    metric: Annotated[str | Behaviour | Score, As("text")] = "accuracy",
    controls: Annotated[Sequence[Any], As("controls")] = (),
    on: str = "tuned",
    seed: int = 0,
    batch_size: int = 32,
    **options: Any,
) -> DoseResponse:
    """Follow ``metric`` (a name, or a behaviour) of one side of a pair over the strengths of a recipe.

    Args:
        pair: Base and tuned.
        prompts: Anything :class:`workbench.Prompts` takes.
        dose: A recipe, see :meth:`Dose.of`; with ``interventions.dose(recipe)`` all strengths are one batch.
        strengths: What the recipe is multiplied by.
        metric: A name of :data:`workbench.behaviour.METRICS`, or a behaviour: ``"begins:I am sorry"``.
        controls: At least ten random recipes matched to it, each a dose too (on the command line how many).
        on: The model that the recipe is applied to: "base" or "tuned".
        seed: Of intervals.
        batch_size: Prompts per forward pass.
        **options: See :class:`DoseOptions`; texts are greedy.
    """
    check_pair(pair, prompts)
    rows, settings = Prompts.of(prompts), read_options(DoseOptions, options)
    if on not in pair.models:
        raise unknown_name("side", on, pair.models)
    steps = _strengths(strengths)
    random = _doses(controls)
    model, work = pair.models[on], Work(batch_size, settings.progress)
    followed = Followed.beside(
        pair.base, model=model, prompts=rows, metric=metric, strengths=steps, work=work,
        max_new_tokens=settings.max_new_tokens, refusal=settings.refusal,
    )  # fmt: skip
    start, values = followed.plain(), followed.values(Dose.of(dose))
    drawn = np.stack([followed.values(recipe_at) for recipe_at in random]) if random else np.zeros((0, *values.shape))
    counts = metric in SHARES if followed.behaviour is None else followed.behaviour.share
    table = _table(steps, start, values, drawn, share_interval if counts else mean_interval, rows, seed)
    side, more = _side_effect(model, Dose.of(dose), random, steps, settings, work, seed)
    return DoseResponse(
        table=pd.concat([table, more], axis=1),
        metric=followed.metric,
        side=side,
        control=f"{len(random)} random recipes matched to it" if random else "",
        start=float(start.mean()),
        values=values,
        control_values=drawn,
        provenance=Provenance.of(
            "dose_response", pair.models, rows, seed=seed, device=str(model.device),
            settings={"metric": followed.metric, "on": on, "strengths": list(steps), "draws": len(random), "side": side,
                      "max_new_tokens": settings.max_new_tokens, "batch_size": batch_size},
        ),
    )  # fmt: skip


def _strengths(values: Sequence[int | float]) -> tuple[float, ...]:
    ordered = tuple(sorted({float(value) for value in values}))
    if not ordered or not np.isfinite(ordered).all():
        raise UserError("Give at least one finite strength, such as [-1, 0, 1, 2].")
    return ordered


def _doses(controls: Sequence[Any]) -> list[Dose]:
    if controls and len(controls) < MIN_DRAWS:
        raise UserError(f"A control needs at least {MIN_DRAWS} random recipes; got {len(controls)}.")
    return [Dose.of(control) for control in controls]


def _table(
    strengths: Sequence[int | float],
    start: np.ndarray,
    values: np.ndarray,
    drawn: np.ndarray,
    interval: Callable[..., Interval],
    prompts: Prompts,
    seed: int,
) -> pd.DataFrame:
    lines, clusters = [], prompts.clusters
    for place, strength in enumerate(strengths):
        mean = interval(values[place], clusters=clusters, seed=seed)
        moved = np.where(np.abs(values[place] - start) <= ROUNDING * (1 + np.abs(start)), 0.0, values[place] - start)
        change = mean_interval(moved, clusters=clusters, seed=seed)
        line = {"strength": strength, "estimate": mean.estimate, "low": mean.low, "high": mean.high, "n": mean.n}
        line |= {"change": change.estimate, "change_low": change.low, "change_high": change.high}
        lines.append({**line, **_band("control", drawn[:, place].mean(-1))})
    return pd.DataFrame(lines)


def _band(name: str, by_draw: np.ndarray) -> dict[str, float]:
    """Mean and 95 % range over draws."""
    if not len(by_draw):
        return {}
    low, high = np.quantile(by_draw, (0.025, 0.975))
    return {name: float(by_draw.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _side_effect(
    model: AdaptedModel,
    dose: Dose,
    random: Sequence[Dose],
    strengths: Sequence[int | float],
    options: DoseOptions,
    work: Work,
    seed: int,
) -> tuple[str, pd.DataFrame]:
    """What the side effect is, and its columns."""
    if options.neutral is not None:
        texts = Prompts.of(options.neutral)
        meaning, each = "perplexity on neutral text", lambda sweep: over_strengths(
            sweep, model, texts, strengths, lambda subject, rows, _: text_scores(subject, rows, work)
        )  # fmt: skip
        interval = _perplexity
    elif options.out_of_scope is not None:
        texts = Prompts.of(options.out_of_scope)
        plain = HeldLogits.of(Subject("as it is", model), texts, work)
        meaning, each = "KL from the model as it is, out of scope, in nats", lambda swept: over_strengths(
            swept, model, texts, strengths,
            lambda subject, rows, numbers: next_token_scores(subject, rows, "kl", plain, numbers, work),
        )  # fmt: skip
        interval = _mean
    else:
        return "", pd.DataFrame(index=range(len(strengths)))
    own, drawn = each(dose), [each(stand_in) for stand_in in random]
    lines = []
    for place in range(len(strengths)):
        bounds = interval(own[place], texts.clusters, seed)
        line = {"side": bounds.estimate, "side_low": bounds.low, "side_high": bounds.high}
        by_draw = np.array([interval(values[place], None, None).estimate for values in drawn])
        lines.append({**line, **_band("side_control", by_draw)})
    return meaning, pd.DataFrame(lines)


def _mean(values: np.ndarray, clusters: np.ndarray | None, seed: int | None) -> Interval:
    if seed is None:
        return Interval(float(values.mean()), np.nan, np.nan, len(values))
    return mean_interval(values, clusters=clusters, seed=seed)


def _perplexity(values: np.ndarray, clusters: np.ndarray | None, seed: int | None) -> Interval:
    """Of log-probabilities and token counts [text, 2]."""

    def perplexity(weights: np.ndarray) -> np.ndarray:
        return np.exp(-(weights @ values[:, 0]) / (weights @ values[:, 1]))

    if seed is None:
        return Interval(float(perplexity(np.ones((1, len(values))))[0]), np.nan, np.nan, len(values))
    return statistic_interval(perplexity, len(values), clusters=clusters, seed=seed)
