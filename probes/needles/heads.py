"""The retrieval score of every head, in one model or in both of a pair (Wu et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import spearmanr

from probes.call_settings import call_settings
from probes.needles.decoding import answer, check_room, copy_scores, recall
from probes.needles.trials import Trial, contents
from probes.resampling import cluster_means
from probes.results import ProbeResult, Provenance
from workbench.argument_checks import check_subject, read_options
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float


@dataclass(frozen=True)
class RetrievalOptions:
    """Options of :func:`retrieval_heads`."""

    max_new_tokens: int = 50
    keep_above: float = 0.5
    """A trial counts when the answer holds more than this share of the needle's words."""
    threshold: float = 0.1
    """From this score on a head is called a retrieval head."""
    decoys: int = 10
    """Random spans of the same length outside the needle, as the control."""
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievalHeads(ProbeResult):
    """Share of the needle each head copies, averaged over the trials that were answered.

    Of a pair, ``score`` is the tuned model's; ``base``, ``change`` (tuned - base) stand beside it. ``active``: share of
    trials in which the head copied anything. ``control``: the same score for random spans outside the needle.
    """

    kept: Mapping[str, tuple[int, int]]
    """role -> (trials answered, trials)."""
    threshold: float
    agreement: Mapping[str, float]
    """Of a pair: Spearman correlation of the maps and Jaccard overlap of the heads above the threshold."""
    needles: int = 0
    """Needles of which a trial was answered: the units of intervals and tests."""
    title: ClassVar[str] = "Retrieval heads"
    unit: ClassVar[str] = "share of the needle copied"

    def heads(self) -> list[str]:
        """Labels of the heads at or above the threshold, best first."""
        table = self.frame()
        above = table[table["score"] >= self.threshold]
        return [f"L{int(layer)}H{int(head)}" for layer, head in zip(above["layer"], above["head"], strict=True)]

    @property
    def needles_for_q(self) -> int:
        """Needles from which on one head alone can have q < 0.05: each is one sign of an exact sign-flip test over
        needles, whose least p is 2 / 2^n, times as many heads as there are."""
        return math.ceil(math.log2(2 * len(self.table) / 0.05))

    def summary(self) -> str:
        """How many heads copy, and whether there were needles enough to test each by itself."""
        best = self.frame().iloc[0]
        named = f"L{best['layer']:.0f}H{best['head']:.0f}"
        enough = (
            ""
            if self.needles >= self.needles_for_q
            else f"; {self.needles} needles are too few for q of a single head to fall below 0.05: give "
            f"{self.needles_for_q} or more, or go by score and control"
        )
        return (
            f"{len(self.heads())} of {len(self.table)} heads copy at least {self.threshold:g} of the needle; most: "
            f"{named}, {best['score']:.2f} [{best['low']:.2f}, {best['high']:.2f}], control {best['control']:.2f}, "
            f"q = {best['q']:.2g}{enough}"
        )

    def figure(self) -> go.Figure:
        """Layer by head."""
        from workbench.figures.heads import head_heatmap

        answered = ", ".join(f"{role} {count} of {of}" for role, (count, of) in self.kept.items())
        return head_heatmap(self.table, title=f"Retrieval heads (trials answered: {answered})", score=self.unit)


def retrieval_heads(subject: Any, trials: Sequence[Trial], **options: Any) -> RetrievalHeads:
    """Which heads of a model, or of both models of a pair, copy the needle into their answer.

    A head scores at a step when the position it looks at most lies in the needle and holds the token that is being
    WRITTEN. ``options``: see :class:`RetrievalOptions`. Raises :class:`UserError` when a model answers no trial: its
    heads are then not measurable, which is not the same as zero.
    """
    check_subject(subject)
    settings = read_options(RetrievalOptions, options)
    if not trials:
        raise UserError("There are no needle trials: make some with needle_trials(haystack, needles, tokenizer).")
    is_pair = hasattr(subject, "base") and hasattr(subject, "tuned")
    models: dict[str, AdaptedModel] = (
        {"tuned": subject.tuned, "base": subject.base} if is_pair else {subject.role: subject}
    )
    scored = {role: scored_trials(model, trials, settings) for role, model in models.items()}
    role = next(iter(scored))
    table = _table(scored[role], trials, settings)
    agreement: dict[str, float] = {}
    if is_pair:
        base = scored["base"].scores.mean(0).reshape(-1)
        table = table.assign(base=base, change=table["score"] - base)
        agreement = _agreement(table["score"].to_numpy(), base, settings.threshold)
    return RetrievalHeads(
        table=table,
        control=f"{settings.decoys} random spans of the needle's length elsewhere in each prompt",
        provenance=Provenance.of(
            "retrieval_heads", models, contents(trials), seed=settings.seed,
            device=str(models[role].device), forward_passes=sum(answered.passes for answered in scored.values()),
            settings=call_settings(settings),
        ),
        kept={name: (len(scores.rows), len(trials)) for name, scores in scored.items()},
        threshold=settings.threshold,
        agreement=agreement,
        needles=len({trials[number].group for number in scored[role].rows}),
    )  # fmt: skip


@dataclass(frozen=True)
class ScoredTrials:
    """Scores of every head on the trials that were answered; ``rows`` are their numbers."""

    scores: Float[np.ndarray, "trial layer head"]
    decoys: Float[np.ndarray, "trial layer head"]
    rows: list[int]
    passes: int


def scored_trials(model: AdaptedModel, trials: Sequence[Trial], settings: RetrievalOptions) -> ScoredTrials:
    """Scores of the trials that the model answers."""
    check_room(model, trials, settings.max_new_tokens)
    report, rng = settings.progress or Silent(), np.random.default_rng(settings.seed)
    scores, decoys, rows, passes = [], [], [], 0
    report.start(f"Needles in the {model.role} model", len(trials))
    best = 0.0
    for row, trial in enumerate(trials):
        decoded = answer(model, trial, settings.max_new_tokens)
        passes += decoded.passes
        report.advance()
        held = recall(model, trial, decoded.outputs)
        best = max(best, held)
        if held <= settings.keep_above:
            continue
        assert decoded.attended is not None
        rows.append(row)
        scores.append(copy_scores(decoded.attended, decoded.outputs, trial.ids, trial.start, trial.end))
        spans = [_elsewhere(trial, rng) for _ in range(settings.decoys)]
        decoys.append(
            np.mean([copy_scores(decoded.attended, decoded.outputs, trial.ids, *span) for span in spans], axis=0)
        )
    report.finish()
    if not rows:
        raise UserError(
            f"Retrieval heads of the {model.role} model are not measurable: it answered none of {len(trials)} trials "
            f"(best recall of a needle {best:.2f}, needed > {settings.keep_above}); use shorter contexts, easier "
            "needles, or a model that can retrieve."
        )
    return ScoredTrials(np.stack(scores), np.stack(decoys), rows, passes)


def _elsewhere(trial: Trial, rng: np.random.Generator) -> tuple[int, int]:
    """A span of the needle's length that does not touch it, where the prompt has room for one."""
    width = trial.end - trial.start
    starts = [s for s in range(len(trial.ids) - width) if s + width <= trial.start or s >= trial.end]
    start = int(rng.choice(starts)) if starts else 0
    return start, start + width


def _table(scored: ScoredTrials, trials: Sequence[Trial], settings: RetrievalOptions) -> pd.DataFrame:
    clusters = np.array([trials[row].group for row in scored.rows])
    if len(set(clusters)) < 2:
        clusters = np.arange(len(clusters))  # one needle: its trials are all there is to resample
    n, layers, heads = scored.scores.shape
    flat, decoys = scored.scores.reshape(n, -1), scored.decoys.reshape(n, -1)
    intervals = mean_intervals(flat, clusters=clusters, seed=settings.seed)
    p = paired_permutation(cluster_means(flat - decoys, clusters), seed=settings.seed).p
    return pd.DataFrame({
        "layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers),
        "score": intervals.estimate, "low": intervals.low, "high": intervals.high, "control": decoys.mean(0),
        "q": q_values(p), "active": (flat > 0).mean(0),
    })  # fmt: skip


def _agreement(tuned: np.ndarray, base: np.ndarray, threshold: float) -> dict[str, float]:
    ours, theirs = tuned >= threshold, base >= threshold
    either = int((ours | theirs).sum())
    constant = np.ptp(tuned) == 0 or np.ptp(base) == 0
    return {
        "spearman": float("nan") if constant else float(spearmanr(tuned, base).statistic),
        "jaccard": float((ours & theirs).sum() / either) if either else float("nan"),
    }
