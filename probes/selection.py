"""Which heads can carry a task: learned scalings of every head under an L1 penalty (LoFiT's first stage).

After Yin, Ye and Durrett 2024. The training is :func:`interventions.training.scales.train_head_scales`; this probe adds
the uncertainty over prompts, the second score, and the test on held-out prompts beside random heads and beside the
heads that another task would choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy import stats

from interventions import HeadScale, Recipe
from interventions.training.examples import Collator, answer_log_probs, examples_of
from interventions.training.scales import train_head_scales
from interventions.training.trainer import Schedule, answer_logits
from probes.call_settings import call_settings
from probes.cells import mean_of_others
from probes.matching import Place, matched_cells
from probes.resampling import interval
from probes.results import ProbeResult, Provenance
from workbench.argument_checks import read_options
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook, missing_site
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.figures.intervals import whiskers
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.prompts.encode import batches
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.intervals import Intervals
from workbench.typing import Float, Tensor


@dataclass(frozen=True)
class SelectionOptions:
    """Options of :func:`head_selection`."""

    penalty: float = 1e-3
    """Times the sum of |A| over all heads; it does not carry over to a model of another size."""
    epochs: int = 5
    learning_rate: float = 5e-3
    batch_size: int = 8
    end: bool = True
    """Whether the answer is learned with the end of text behind it."""
    resamples: int = 4
    """Further trainings on prompts drawn with replacement; their spread gives the intervals."""
    holdout: float = 0.25
    """The share of prompts (whole groups) on which the chosen heads are tried; they are not trained on."""
    heads: int | None = None
    """K, how many heads are chosen; default a tenth."""
    other: Annotated[Any, As("prompts")] = None
    """Prompts (with answers) of another task: a control that chooses as many heads by the same method for that task."""
    controls: int = 10
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class HeadSelection(ProbeResult):
    """Heads by the L2 norm of their learned scaling A (z <- (1 + A) z).

    Further columns: ``by_activation`` (the norm of A * E|z|, which does not favour heads of small activations) and
    ``top_share`` (in how many resamples the head is among the chosen K).
    """

    scales: Float[Tensor, "layer head d_head"]
    chosen: list[str]
    """The K best heads."""
    agreement: float
    """Spearman correlation of the two scores."""
    together: pd.DataFrame
    """Held-out gain in log-probability of the answer (nats) with the learned scalings of the ``count`` best heads
    alone (score, low, high), beside as many random heads of the same layers (control, control_low, control_high), and
    beside the ``count`` best heads of the other task, if one was given (other, other_low, other_high)."""
    history: list[float]
    """Training loss per step."""
    other_chosen: list[str] | None = None
    """The K best heads of the other task; None without one."""
    title: ClassVar[str] = "Head selection"
    unit: ClassVar[str] = "L2 norm of the learned scaling"

    def figure(self) -> go.Figure:
        """Layer by head."""
        from workbench.figures.heads import head_heatmap

        return head_heatmap(self.table, title="Heads that learned scalings choose", score="‖A‖")

    def together_figure(self) -> go.Figure:
        """Held-out gain against the number of heads, beside random heads and the other task's heads."""
        from workbench.figures.patching import together_lines

        figure = together_lines(self.together, title="Learned scalings of the best heads alone", score="gain in nats")
        figure.update_xaxes(title={"text": "heads scaled"})
        if "other" in self.together:
            shown = self.together.sort_values("count")
            figure.add_scatter(
                x=shown["count"], y=shown["other"], name="best heads of the other task", mode="lines+markers",
                line=dict(color="rgb(178, 24, 43)", dash="dot"), marker=dict(symbol="diamond"),
                error_y=whiskers(shown, "other", "other_low", "other_high"),
            )  # fmt: skip
        return figure


@method(
    "head-selection",
    group="heads",
    question="Which heads would learn the task, if heads alone were trained?",
    papers=("LoFiT: Localized Fine-tuning on LLM Representations",),
    needs=Needs(columns=("answer",)),
    cost="epochs x (1 + resamples) trainings of one scale per head entry",
)
def head_selection(subject: Any, prompts: Any, **options: Any) -> HeadSelection:
    """Train one scaling per entry of every head's z for the prompts' ``answer`` and rank heads by its norm.

    ``subject``: a model, or a pair (its base is asked which heads could carry the task). ``options``: see
    :class:`SelectionOptions`. ``q`` asks whether a head's score stands out from random other heads' (t-test over the
    resamples), so it needs at least two; whether the chosen heads help is what ``together`` shows, on held-out prompts.
    Raises :class:`UserError` for prompts without answers and for too few to hold some out.
    """
    settings = read_options(SelectionOptions, options)
    model: AdaptedModel = getattr(subject, "base", subject)
    rows = Prompts.of(prompts)
    if not model.hub.geometry.attention_layers:
        raise missing_site(model.hub, Site("z", 0))
    count = _how_many(model.n_layers * model.n_heads, settings.heads)
    train, test = _split(rows, settings)
    trained = _train(model, rows[train], settings, settings.seed)
    again = [_train(model, rows[_redrawn(rows, train, settings.seed + n)], settings, settings.seed + n).scales
             for n in range(1, settings.resamples + 1)]  # fmt: skip
    other = None if settings.other is None else Prompts.of(settings.other)
    rivals = None if other is None else _train(model, other, settings, settings.seed)
    typical = _mean_size(model, rows[train], settings.batch_size)
    scores = trained.scores()
    drawn = np.array([weights.norm(dim=-1).flatten().double().numpy() for weights in again]).reshape(
        len(again), scores.numel()
    )
    table, agreement = _table(trained.scales, typical, drawn, count, settings)
    trial = _Trial(model, rows[test], trained.scales, settings)
    seen = len(train) * (1 + settings.resamples) + (0 if other is None else len(other))
    steps = -(-seen * settings.epochs // settings.batch_size)
    return HeadSelection(
        table=table,
        control=f"the mean of {settings.controls} random other heads; together: random heads of the same layers"
        + ("" if other is None else ", and as many heads chosen for another task"),
        provenance=Provenance.of(
            "head_selection", model, rows, seed=settings.seed, forward_passes=steps + trial.passes,
            backward_passes=steps, settings={**call_settings(settings, other=other), "held_out": len(test)},
        ),
        scales=trained.scales,
        chosen=trained.best(count),
        agreement=agreement,
        together=trial.table(scores, count, None if rivals is None else rivals.scores()),
        history=[float(step["loss"]) for step in trained.history],
        other_chosen=None if rivals is None else rivals.best(count),
    )  # fmt: skip


def _split(rows: Prompts, settings: SelectionOptions) -> tuple[list[int], list[int]]:
    """Prompts to train on and prompts held out, whole groups."""
    clusters = rows.clusters
    order = np.random.default_rng(settings.seed).permutation(np.unique(clusters))
    held = order[: max(1, round(settings.holdout * len(order)))]
    test = np.flatnonzero(np.isin(clusters, held))
    train = np.flatnonzero(~np.isin(clusters, held))
    if len(train) < 2 or len(test) < 2:
        raise UserError(
            f"{len(rows)} prompts in {len(order)} groups leave {len(train)} to train on and {len(test)} to test: give "
            "at least 8 prompts, in several groups."
        )
    return train.tolist(), test.tolist()


def _redrawn(rows: Prompts, train: Sequence[int], seed: int) -> list[int]:
    """As many groups of the training prompts, drawn with replacement."""
    clusters = rows.clusters[list(train)]
    groups = np.unique(clusters)
    drawn = np.random.default_rng(seed).choice(groups, len(groups))
    return [train[int(place)] for group in drawn for place in np.flatnonzero(clusters == group)]


def _train(model: AdaptedModel, rows: Prompts, settings: SelectionOptions, seed: int) -> Any:
    schedule = Schedule(
        epochs=settings.epochs, batch_size=settings.batch_size, learning_rate=settings.learning_rate, seed=seed
    )
    return train_head_scales(
        model, rows, penalty=settings.penalty, end=settings.end, schedule=schedule, progress=settings.progress
    )


def _mean_size(model: AdaptedModel, rows: Prompts, batch_size: int) -> Float[Tensor, "layer head d_head"]:
    """E|z| over all real tokens."""
    total = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64)
    tokens = 0

    def add(layer: int) -> Any:
        def reader(value: Tensor, ctx: ForwardContext) -> None:
            total[layer] += value[ctx.real].detach().abs().double().sum(0).cpu()

        return reader

    lengths = model.encode(rows).lengths.tolist()
    for members in batches(lengths, batch_size):
        batch = model.encode(rows[members])
        tokens += int(batch.attention_mask.sum())
        with model.hooked([SiteHook(Site("z", layer), add(layer)) for layer in range(model.n_layers)], stop=True):
            model.forward(batch, logits=None)
    return (total / tokens).float()


def _table(
    scales: Float[Tensor, "layer head d_head"],
    typical: Float[Tensor, "layer head d_head"],
    drawn: Float[np.ndarray, "resample cell"],
    count: int,
    settings: SelectionOptions,
) -> tuple[pd.DataFrame, float]:
    layers, heads, _ = scales.shape
    score = scales.norm(dim=-1).flatten().double().numpy()
    weighed = (scales * typical).norm(dim=-1).flatten().double().numpy()
    n = len(score)
    control = mean_of_others(score, settings.controls, settings.seed)
    leading = np.argsort(-drawn, axis=1)[:, :count]
    spread = drawn.std(0, ddof=1) if len(drawn) > 1 else np.full(n, np.nan)
    reach = stats.t.ppf(0.975, max(1, len(drawn) - 1)) * spread
    random = [mean_of_others(resample, settings.controls, settings.seed) for resample in drawn]
    apart = drawn - np.array(random).reshape(drawn.shape)
    table = pd.DataFrame({
        "layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers),
        "score": score, "low": score - reach, "high": score + reach,
        "control": control, "q": q_values(_standing_out(score - control, apart)), "by_activation": weighed,
        "top_share": (leading[:, :, None] == np.arange(n)).any(1).mean(0) if len(drawn) else np.nan,
    })  # fmt: skip
    return table, float(stats.spearmanr(score, weighed).statistic)


def _how_many(total: int, asked_for: int | None) -> int:
    """K; at most half of all heads, so that as many others are left as their control."""
    count = asked_for or max(1, round(0.1 * total))
    if count > total // 2:
        raise UserError(
            f"{count} chosen of the model's {total} heads leave too few as a control: choose {total // 2} or fewer"
            + ("; a selection needs a model of at least two heads." if total < 2 else ".")
        )
    return count


def _standing_out(
    distance: Float[np.ndarray, " cell"], drawn: Float[np.ndarray, "resample cell"]
) -> Float[np.ndarray, " cell"]:
    """p-values that the distance from other heads is 0, judged by its own spread over few resamples."""
    if len(drawn) < 2:
        return np.full(len(distance), np.nan)
    spread = drawn.std(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stats.t.sf(np.abs(distance) / spread, len(drawn) - 1)
    return np.where(spread > 0, p, 1.0)


class _Trial:
    """The learned scalings of some heads alone, on prompts that were not trained on."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, scales: Float[Tensor, "layer head d_head"], settings: SelectionOptions
    ) -> None:
        self.model, self.rows, self.scales, self.settings = model, rows, scales, settings
        self.examples = examples_of(rows, model.tokenizer, end=settings.end)
        self.passes = 0
        self.start = self._log_probs([])

    def table(
        self, scores: Float[Tensor, "layer head"], count: int, rivals: Float[Tensor, "layer head"] | None
    ) -> pd.DataFrame:
        """Gains of the 1, 2, 4, ... ``count`` best heads, of as many random ones, and of the best by ``rivals``."""
        best = _leading(scores, count)
        heads = {(layer, head): 0.0 for layer in range(scores.shape[0]) for head in range(scores.shape[1])}
        random = matched_cells(best, heads, self.settings.controls, self.settings.seed, nearest=len(heads))
        counts = sorted({1, count, *(step for step in (2, 4, 8, 16, 32) if step < count)})
        gains = self._gains(best, counts)
        drawn = np.array([[self._gain(draw[:step]).mean() for step in counts] for draw in random])
        low, high = interval(drawn)
        table = pd.DataFrame({
            "count": counts, "score": gains.estimate, "low": gains.low, "high": gains.high,
            "control": drawn.mean(0), "control_low": low, "control_high": high,
        })  # fmt: skip
        if rivals is None:
            return table
        other = self._gains(_leading(rivals, count), counts)
        return table.assign(other=other.estimate, other_low=other.low, other_high=other.high)

    def _gains(self, heads: Sequence[Place], counts: Sequence[int]) -> Intervals:
        """Mean gains of the first 1, 2, 4, ... of ``heads``."""
        gains = np.stack([self._gain(heads[:step]) for step in counts], axis=1)
        return mean_intervals(gains, clusters=self.rows.clusters, seed=self.settings.seed)

    def _gain(self, heads: Sequence[Place]) -> Float[np.ndarray, " prompt"]:
        return self._log_probs(heads) - self.start

    def _log_probs(self, heads: Sequence[Place]) -> Float[np.ndarray, " prompt"]:
        """Log-probability of each answer with these heads scaled."""
        scaled = {f"L{layer}H{head}": 1 + self.scales[layer, head] for layer, head in heads}
        collate = Collator(pad_id(self.model.tokenizer))
        log_probs = np.zeros(len(self.examples))
        lengths = [len(example.prompt) + len(example.answer) for example in self.examples]
        with Recipe([HeadScale(scaled)] if heads else []).applied(self.model), self.model.active(), torch.no_grad():
            for members in batches(lengths, self.settings.batch_size):
                batch = collate([self.examples[row] for row in members])
                logits = answer_logits(self.model, batch["input_ids"], batch["attention_mask"])
                log_probs[members] = answer_log_probs(logits, batch["labels"].to(logits.device)).double().cpu().numpy()
                self.passes += 1
        return log_probs


def _leading(scores: Float[Tensor, "layer head"], count: int) -> list[Place]:
    order = scores.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [(place // scores.shape[1], place % scores.shape[1]) for place in order]
