"""Functional token resonance: which experts the prompts (or responses) of one class of behaviour use more.

After "Mixture of Tunable Experts" (Dahlke et al. 2025); ``score="token_rate"`` is the risk difference of SteerMoE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy.stats import rankdata

from probes import resampling
from probes.call_settings import call_settings
from probes.experts.counting import Excluded, ExpertCounts, Phase, content, count_experts, require_experts, special_ids
from probes.experts.labels import Classes, Labeller, classes_of, respond
from probes.results import ProbeResult, Provenance
from workbench.argument_checks import check_subject, read_options
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.stats.fdr import q_values
from workbench.stats.tests import mann_whitney
from workbench.typing import Bool, Float


@dataclass(frozen=True)
class MapOptions:
    """Options of :func:`expert_map`."""

    phase: Literal["prefill", "decode", "both"] = "prefill"
    """Count at prompt tokens, at the tokens of the response, or each apart."""
    score: Literal["share", "token_rate"] = "share"
    """``share``: mean over prompts of each prompt's share of tokens; ``token_rate``: share of a class's tokens."""
    reference: Literal["base"] | None = "base"
    """Of a pair: take the base model's use of each expert by the same tokens away, prompt by prompt. What is left is
    what tuning changed; without it (None), experts that read the topic of a class stand out in the base as well."""
    positions: Literal["all", "last"] = "all"
    """The prompt tokens that count: all, or the last alone."""
    exclude: Annotated[Excluded, As("value")] = "none"
    """Tokens that do not count: see :func:`probes.experts.counting.content`."""
    test: Literal["mannwhitney", "permutation"] = "mannwhitney"
    """Of the difference between classes: by ranks, or by shuffled labels."""
    responses: Sequence[str] | None = None
    """The responses, where they are known already; otherwise the model generates them when they are needed."""
    max_new_tokens: int = 32
    top: int | None = None
    """How many leading experts ``top_share`` asks about; default 10, at most a tenth of all."""
    draws: int = 500
    batch_size: int = 16
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class ExpertMap(ProbeResult):
    """Difference in use of every expert between prompts of the target class and the others.

    Besides the shared columns the table has ``phase``, ``target_share``, ``other_share``, ``frequency`` (share over
    all prompts), ``unreferenced`` (the difference without the base model taken away), ``p``, the band of shuffled
    labels (``control_low``, ``control_high``) and ``top_share`` (in how many bootstrap samples the expert is among the
    leading ones).
    """

    target: str
    others: tuple[str, ...]
    n_target: int
    n_other: int
    reference: str | None
    phases: tuple[str, ...]
    stability: Mapping[str, float]
    """phase -> mean Spearman correlation of the ranking in bootstrap samples with the ranking shown."""
    responses: list[str] | None
    title: ClassVar[str] = "Expert map"
    unit: ClassVar[str] = "difference in the share of tokens that select the expert"

    def phase_table(self, phase: str | None = None) -> pd.DataFrame:
        """The sorted table of one phase (default: the first)."""
        wanted = self._phase(phase)
        table = self.frame()
        return table[table["phase"] == wanted].reset_index(drop=True)

    def ranking(self, n: int | None = None, phase: str | None = None) -> list[str]:
        """Labels such as ``L3E12``, the expert most specific to the target class first."""
        table = self.phase_table(phase).head(n if n is not None else len(self.table))
        return [f"L{row.layer}E{row.expert}" for row in table.itertuples()]

    def frequency(self, phase: str | None = None) -> dict[tuple[int, int], float]:
        """(layer, expert) -> share of tokens that select it over all prompts."""
        table = self.phase_table(phase)
        return {(int(row["layer"]), int(row["expert"])): float(row["frequency"]) for _, row in table.iterrows()}

    def figure(self, phase: str | None = None) -> go.Figure:
        """Layer by expert, centred at 0; cells inside the band of shuffled labels are greyed."""
        from workbench.figures.experts import expert_heatmap

        wanted = self._phase(phase)
        return expert_heatmap(
            self.phase_table(wanted),
            title=f"Experts of {self.target!r} against {' / '.join(map(repr, self.others))} ({wanted}"
            f"{', tuned - base' if self.reference else ''}, n = {self.n_target} + {self.n_other})",
        )

    def summary(self) -> str:
        significant = int((self.table["q"] < 0.05).sum())
        shown = ", ".join(f"{phase} {value:.2f}" for phase, value in self.stability.items())
        return (
            f"{significant} of {len(self.table)} cells with q < 0.05 ({self.n_target} prompts {self.target!r}, "
            f"{self.n_other} others); rank stability {shown}; control: {self.control}"
        )

    def _phase(self, phase: str | None) -> str:
        if phase is not None and phase not in self.phases:
            raise UserError(f"This map has no phase {phase!r}: it counted {' and '.join(self.phases)}.")
        return phase or self.phases[0]


@method(
    "experts",
    gives=("ranked experts",),
    group="experts",
    question="Which experts does one class of behaviour use more?",
    papers=("Mixture of Tunable Experts -- Behavior Modification of DeepSeek-R1 at Inference Time",),
    needs=Needs(columns=("label",), experts=True),
    cost="one forward pass of each model, and a generation where responses are labelled",
    example="--target refuse",
)
def expert_map(
    subject: Any,
    prompts: Any,
    labels: Annotated[Sequence[Any] | Labeller | None, As("column")] = None,
    target: Annotated[Any, As("value")] = None,
    **options: Any,
) -> ExpertMap:
    """Which experts the model uses more for prompts of the ``target`` class of behaviour than for the others.

    ``subject``: a model, or a pair: its tuned model is mapped, minus what the base does (see ``reference``).
    ``labels``: the class of the model's RESPONSE to each prompt, as a list, as the prompts' ``label`` column
    (default), or as a function ``(response, prompt) -> class`` called on generated responses. ``options``: see
    :class:`MapOptions`.
    Raises :class:`UserError` on a dense model and for labels of one class.

    Args:
        labels: The class of each response: the column of the prompts that holds it (default label), in Python a list or
            a function.
        target: The class whose experts are asked for.
    """
    check_subject(subject)
    settings = read_options(MapOptions, options)
    _excluded(settings)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    base: AdaptedModel | None = getattr(subject, "base", None) if settings.reference else None
    require_experts(model)
    rows = Prompts.of(prompts)
    phases: tuple[Phase, ...] = ("prefill", "decode") if settings.phase == "both" else (settings.phase,)
    answers, passes = _responses(model, rows, settings, needed=callable(labels) or "decode" in phases)
    texts = None if answers is None else _texts(model, answers, settings)
    classes = classes_of(_labels(rows, labels, texts), target)
    counted = rows[list(classes.rows)]
    counts = _count(model, model, counted, answers, classes, phases, settings)
    before = None if base is None else _count(base, model, counted, answers, classes, phases, settings)
    clusters = rows[list(classes.rows)].clusters
    tables: list[pd.DataFrame] = []
    stability: dict[str, float] = {}
    for number, (phase, own) in enumerate(zip(phases, counts, strict=True)):
        table, stability[phase] = _compare(own, None if before is None else before[number], classes, clusters, settings)
        tables.append(table.assign(phase=phase))
    return ExpertMap(
        table=pd.concat(tables, ignore_index=True),
        control="the same difference with the labels shuffled over prompts",
        provenance=Provenance.of(
            "expert_map",
            {model.role: model} if base is None else {"base": base, "tuned": model},
            rows,
            seed=settings.seed,
            device=str(model.device),
            forward_passes=passes + counts[0].passes + (0 if before is None else before[0].passes),
            settings={**call_settings(settings), "unlabelled": len(rows) - len(classes.rows)},
        ),
        target=classes.target,
        others=classes.others,
        n_target=int(classes.is_target.sum()),
        n_other=int((~classes.is_target).sum()),
        reference=None if base is None else "base",
        phases=phases,
        stability=stability,
        responses=texts,
    )


def _responses(
    model: AdaptedModel, rows: Prompts, settings: MapOptions, *, needed: bool
) -> tuple[list[list[int]] | None, int]:
    """Token ids of the responses (given or generated), and the forward passes spent; None where none are needed."""
    if not needed:
        return None, 0
    if settings.responses is None:
        return respond(model, rows, settings.max_new_tokens, settings.batch_size, settings.progress)
    if len(settings.responses) != len(rows):
        raise UserError(f"There are {len(settings.responses)} responses for {len(rows)} prompts: give one for each.")
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in settings.responses], 0


def _texts(model: AdaptedModel, answers: Sequence[Sequence[int]], settings: MapOptions) -> list[str]:
    if settings.responses is not None:
        return list(settings.responses)
    return [model.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


def _labels(rows: Prompts, labels: Sequence[Any] | Labeller | None, texts: Sequence[str] | None) -> list[Any]:
    if callable(labels):
        assert texts is not None
        return [labels(text, row) for text, row in zip(texts, rows, strict=True)]
    values = rows.labels if labels is None else list(labels)
    if len(values) != len(rows):
        raise UserError(
            f"There are {len(values)} labels for {len(rows)} prompts: give one for each (None leaves it out)."
        )
    return values


def _excluded(settings: MapOptions) -> Excluded:
    """What does not count; ``positions`` and ``exclude`` both decide it, so only one may be given."""
    if settings.positions == "all":
        return settings.exclude
    if settings.exclude != "none":
        raise UserError("positions='last' and exclude both choose the tokens that count; give one of them.")
    return lambda ids: torch.arange(len(ids)) < len(ids) - 1


def _count(
    model: AdaptedModel,
    reader: AdaptedModel,
    rows: Prompts,
    answers: Sequence[Sequence[int]] | None,
    classes: Classes,
    phases: Sequence[Phase],
    settings: MapOptions,
) -> list[ExpertCounts]:
    """Counts per phase from one pass over prompts, with their responses behind them where those count.

    ``reader`` is the model whose tokenizer reads the prompts, so that both models of a pair see the same tokens.
    """
    ids = [reader.encode(rows[[number]]).input_ids[0].tolist() for number in range(len(rows))]
    masks = content(ids, _excluded(settings), special_ids(reader.tokenizer))
    behind: list[list[int]] = [[] for _ in ids]
    if "decode" in phases:
        assert answers is not None
        behind = [list(answers[row]) for row in classes.rows]
    marks: dict[Phase, list[np.ndarray]] = {
        "prefill": [np.append(mask, np.zeros(len(new), bool)) for mask, new in zip(masks, behind, strict=True)],
        "decode": [np.append(np.zeros(len(old), bool), np.ones(len(new), bool))
                   for old, new in zip(ids, behind, strict=True)],
    }  # fmt: skip
    return count_experts(
        model,
        [old + new for old, new in zip(ids, behind, strict=True)],
        [marks[phase] for phase in phases],
        batch_size=settings.batch_size,
        progress=settings.progress,
    )


def _compare(
    plain: ExpertCounts, base: ExpertCounts | None, classes: Classes, clusters: np.ndarray, settings: MapOptions
) -> tuple[pd.DataFrame, float]:
    """One row per cell, and the rank stability."""
    counts = plain if base is None else plain.minus(base)
    used = counts.tokens > 0
    is_target = classes.is_target[used]
    if not is_target.any() or is_target.all():
        raise UserError("No response of one class has a token to count: raise max_new_tokens, or map the prefill.")
    shares = counts.shares[used].reshape(int(used.sum()), -1)
    by_token = settings.score == "token_rate"
    above = counts.counts[used].reshape(shares.shape) if by_token else shares
    below = counts.tokens[used] if by_token else np.ones(len(shares))
    own = plain.counts[used].reshape(shares.shape) / (1.0 if by_token else plain.tokens[used, None])
    own_target, own_other = (_rate(side[None], own, below)[0] for side in (is_target * 1.0, ~is_target * 1.0))
    target, other = (_rate(side[None], above, below)[0] for side in (is_target * 1.0, ~is_target * 1.0))
    weights = resampling.bootstrap_weights(len(shares), settings.draws, settings.seed, clusters[used])
    drawn = _rate(weights * is_target, above, below) - _rate(weights * ~is_target, above, below)
    shuffled = resampling.shuffled_labels(is_target.astype(np.int64), settings.draws, settings.seed + 1, clusters[used])
    null = _rate(shuffled * 1.0, above, below) - _rate(1.0 - shuffled, above, below)
    score = target - other
    by_permutation = settings.test == "permutation"
    p = resampling.permutation_p(score, null) if by_permutation else _mann_whitney(shares, is_target, clusters[used])
    low, high = resampling.interval(drawn)
    control_low, control_high = resampling.interval(null)
    top_share, stability = _rank_stability(score, drawn, settings.top or min(10, max(1, len(score) // 10)))
    table = pd.DataFrame({
        "layer": np.repeat(counts.layers, counts.counts.shape[2]),
        "expert": np.tile(np.arange(counts.counts.shape[2]), len(counts.layers)),
        "score": score, "low": low, "high": high,
        "control": null.mean(0), "control_low": control_low, "control_high": control_high,
        "p": p, "q": q_values(p),
        "target_share": own_target, "other_share": own_other, "unreferenced": own_target - own_other,
        "frequency": _rate(np.ones((1, len(shares))), own, below)[0], "top_share": top_share,
    })  # fmt: skip
    return table, stability


def _rate(
    weights: Float[np.ndarray, "draw prompt"],
    above: Float[np.ndarray, "prompt cell"],
    below: Float[np.ndarray, " prompt"],
) -> Float[np.ndarray, "draw cell"]:
    """Weighted selections over weighted tokens; NaN for a draw that holds none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ above) / (weights @ below)[:, None]


def _mann_whitney(
    shares: Float[np.ndarray, "prompt cell"], is_target: Bool[np.ndarray, " prompt"], clusters: np.ndarray
) -> Float[np.ndarray, " cell"]:
    """Two-sided p-values; 1 where all share alike. The prompts of a cluster and class are one unit, their mean: taken
    one by one, wordings of one question would count as so many independent witnesses."""
    units = 2 * np.unique(clusters, return_inverse=True)[1] + is_target
    means, target = resampling.cluster_means(shares, units), np.unique(units) % 2 == 1
    p = np.ones(shares.shape[1])
    varied = np.ptp(means, axis=0) > 0
    if varied.any():
        p[varied] = mann_whitney(means[target][:, varied], means[~target][:, varied]).p
    return p


def _rank_stability(
    score: Float[np.ndarray, " cell"], drawn: Float[np.ndarray, "draw cell"], top: int
) -> tuple[Float[np.ndarray, " cell"], float]:
    """How often each cell is among the ``top``, and the mean Spearman correlation with the ranking of ``score``."""
    whole = drawn[~np.isnan(drawn).any(1)]
    if not len(whole):
        return np.full(score.shape, np.nan), float("nan")
    ranks = rankdata(whole, axis=1)
    centred = ranks - ranks.mean(1, keepdims=True)
    shown = rankdata(score) - (len(score) + 1) / 2
    norms = np.linalg.norm(centred, axis=1) * np.linalg.norm(shown)
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = (centred @ shown) / norms
    return (ranks > len(score) - top).mean(0), float(np.nanmean(agreement)) if norms.any() else 0.0
