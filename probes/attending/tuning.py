"""Heads whose attention to the first token, or to sinks, is worth changing: profiled, chosen and held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

import interventions as iv
from interventions.attention_scale import eager_expected
from probes.halves import answer_scores, halves
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import paired_p, scored
from workbench.argument_checks import check_subject
from workbench.behaviour.subject import Subject, Work
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.stats.controls import check_draws, random_units
from workbench.stats.fdr import q_values

Edit = Literal["first", "sinks"]
GAMMAS = {"first": (0.3, 0.6, 1.5, 3.0), "sinks": (0.0, 0.2, 0.4, 0.7)}
"""Factors that are tried for the chosen heads: of the first token's attention, of the sinks'."""
PROFILE = {"first": (0.6, 1.5), "sinks": (0.4,)}
"""Factors at which heads are profiled one by one."""


@dataclass(frozen=True, kw_only=True)
class AttentionTuning(ProbeResult):
    """A profile of heads, and what changing the best of them does to prompts that none was chosen on.

    ``table``: layer, head; ``score``, the gain of the answer's log-probability on the choosing half at the better
    factor, with interval; ``gamma``, that factor; ``type`` (up, down, or neutral where neither helps); ``control``, the
    mean gain of all heads at that factor; ``q`` of a gain.
    """

    held_out: pd.DataFrame
    """model (plain, chosen heads, random heads, all heads), score (log-probability of the answer per token on the
    reported half), low, high, gain, p (against plain; of random heads NaN)."""
    edit: str
    heads: list[str]
    gamma: float
    threshold: float
    path: str = ""
    """How the model computed the change: through the attention mask (sdpa stays) or in eager attention."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Attention tuning"
    unit: ClassVar[str] = "gain of the answer's log-probability"

    @property
    def recipe(self) -> iv.Recipe:
        """The chosen heads at the chosen factor."""
        return _recipe(self.edit, self.heads, self.gamma, self.threshold)

    def summary(self) -> str:
        """The held-out gain beside random heads."""
        gain: dict[str, float] = dict(zip(self.held_out["model"], self.held_out["gain"], strict=True))
        p = float(self.held_out.loc[self.held_out["model"] == "chosen heads", "p"].iloc[0])
        way = f" ({self.path})" if self.path else ""
        random = f", random heads {gain['random heads']:.3f}" if "random heads" in gain else ""
        return (
            f"{len(self.heads)} heads at gamma {self.gamma:g}{way}: held-out gain {gain['chosen heads']:.3f} "
            f"nats per token (p {p:.2g}){random}, all heads {gain['all heads']:.3f}; "
            f"intervals over {self.resampled}; control: {self.control}"
        )


@method(
    "zero-tuning",
    group="attention",
    question="Which heads should look more, and which less, at the first token?",
    papers=("ZeroTuning: Unlocking the Initial Token's Power to Enhance Large Language Models Without Training",),
    needs=Needs(columns=("answer",)),
    cost="two passes per head on the choosing half, then one per factor and control",
    fixed={"edit": "first"},
    example="--layers 0,1 --share 0.2",
)
@method(
    "attention-calibration",
    group="attention",
    question="Which heads waste attention on sinks in mid-text?",
    papers=(
        "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through "
        "Attention Calibration",
    ),
    needs=Needs(columns=("answer",)),
    cost="one pass per head on the choosing half, then one per factor and control",
    fixed={"edit": "sinks"},
    example="--layers 0,1 --threshold 0.05",
)
def attention_tuning(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    edit: Edit = "first",
    layers: Any = None,
    share: float = 0.4,
    threshold: float = 0.1,
    controls: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttentionTuning:
    """Profile every head by changing its attention alone, choose heads and a factor, and report on held-out prompts.

    ``edit="first"`` (ZeroTuning) scales attention to the first token by gamma and renormalises. Each head is called
    up-effective or down-effective by the factor that raises the answers; the type with the larger total gain is kept,
    of it the best ``share`` of all heads, and gamma is searched for them together. ``edit="sinks"`` (ACT) leaves gamma
    of the attention on sinks in mid-text and hands the rest to the other tokens; heads that gain are kept.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: Prompts with answers.
        edit: Whose attention changes: first, the first token's; sinks, that of tokens which draw much of it.
        layers: Layers whose heads are profiled; all by default.
        share: At most this share of the profiled heads is chosen.
        threshold: Mean attention above which a token is a sink (edit=sinks).
        controls: Draws of as many random heads of the same layers; 0: none.
        seed: Of halves, random heads and resampling.

    Returns:
        An :class:`AttentionTuning`; ``.recipe`` applies it.

    Raises:
        UserError: Rows without answers, or a share outside 0 to 1.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    if not 0 < share <= 1:
        raise UserError(f"share is {share}: give a share of the heads above 0, up to 1.")
    if controls:
        check_draws(controls)
    rows, work = Prompts.of(prompts), Work(batch_size)
    choosing, reported = halves(rows, seed)
    chosen_layers = resolve_layers(layers, model.n_layers)
    places = [
        attention_layer for attention_layer in model.hub.geometry.attention_layers if attention_layer in chosen_layers
    ]
    if not places:
        raise UserError("None of these layers has attention heads.")
    with eager_expected(), counted(model) as passes:
        profile = _Profile(model, choosing, edit, threshold, work)
        table = profile.table(places, seed, progress or Silent())
        heads = _chosen(table, edit, share)
        gamma = profile.best_gamma(heads)
        held_out = _held_out(_Profile(model, reported, edit, threshold, work), heads, gamma, controls, seed)
    return AttentionTuning(
        table=table,
        control=f"{controls} draws of as many random heads of the same layers; in the profile, the mean over heads",
        provenance=Provenance.of("attention_tuning", model, rows, seed=seed, forward_passes=passes.forward),
        held_out=held_out, edit=edit, heads=heads, gamma=gamma, threshold=threshold,
        path=iv.AttentionScale(2.0).path(model) if edit == "first" else "eager", resampled=units_of(reported.clusters),
    )  # fmt: skip


def _recipe(edit: str, heads: Sequence[str] | None, gamma: float, threshold: float) -> iv.Recipe:
    if edit == "first":
        return iv.Recipe([iv.AttentionScale(gamma, heads)])
    return iv.Recipe([iv.SinkHandover(gamma, heads, threshold)])


class _Profile:
    """Answers on one half, as it is and with heads changed."""

    def __init__(self, model: AdaptedModel, rows: Prompts, edit: Edit, threshold: float, work: Work) -> None:
        self.model, self.rows, self.edit, self.threshold, self.work = model, rows, edit, threshold, work
        self.plain = answer_scores(Subject("plain", model), rows, work)

    def gain(self, heads: Sequence[str] | None, gamma: float) -> np.ndarray:
        """What each prompt's answer gains."""
        recipe = _recipe(self.edit, heads, gamma, self.threshold)
        return answer_scores(Subject("changed", self.model, recipe), self.rows, self.work) - self.plain

    def table(self, layers: Sequence[int], seed: int, bar: Progress) -> pd.DataFrame:
        """Every head at its better factor."""
        bar.start("heads", len(layers) * self.model.n_heads)
        factors, gains = PROFILE[self.edit], []
        lines: list[dict[str, Any]] = []
        for layer in layers:
            for head in range(self.model.n_heads):
                both = [self.gain([f"L{layer}H{head}"], gamma) for gamma in factors]
                best = int(np.argmax([head_gain.mean() for head_gain in both]))
                lines.append({"layer": layer, "head": head, "gamma": factors[best]})
                gains.append(both)
                bar.advance()
        bar.finish()
        means = np.mean([[head_gain.mean() for head_gain in both] for both in gains], axis=0)
        for line, both in zip(lines, gains, strict=True):
            best = factors.index(line["gamma"])
            gain = scored(both[best], seed=seed, clusters=self.rows.clusters)
            kind = "neutral" if gain["score"] <= 0 else "down" if line["gamma"] < 1 else "up"
            p = paired_p(both[best], self.rows.clusters, seed=seed, alternative="greater")
            line |= {**gain, "type": kind, "control": float(means[best]), "p": p}
        table = pd.DataFrame(lines)
        # two factors were tried per head: each p counts twice
        p = np.minimum(1.0, table["p"].to_numpy() * len(factors))
        return table.assign(p=p, q=q_values(p))

    def best_gamma(self, heads: Sequence[str]) -> float:
        """The factor that raises the answers most with all chosen heads together; 1 where none does."""
        if not heads:
            return 1.0
        gains = {gamma: float(self.gain(heads, gamma).mean()) for gamma in GAMMAS[self.edit]}
        best = max(gains, key=lambda gamma: gains[gamma])
        return best if gains[best] > 0 else 1.0


def _chosen(table: pd.DataFrame, edit: Edit, share: float) -> list[str]:
    """Of the type with the larger total gain, the best heads."""
    useful = table[table["type"] != "neutral"]
    if edit == "first" and len(useful):
        useful = useful[useful["type"] == useful.groupby("type")["score"].sum().idxmax()]
    best = useful.sort_values("score", ascending=False, kind="stable").head(max(1, round(share * len(table))))
    return sorted(f"L{row.layer}H{row.head}" for row in best.itertuples())


def _held_out(profile: _Profile, heads: list[str], gamma: float, controls: int, seed: int) -> pd.DataFrame:
    plain, clusters = profile.plain, profile.rows.clusters
    gains = {"plain": np.zeros_like(plain)}
    gains["chosen heads"] = profile.gain(heads, gamma) if heads else np.zeros_like(plain)
    gains["all heads"] = profile.gain(None, gamma)
    places = [tuple(map(int, head[1:].split("H"))) for head in heads]
    if controls and places and len(places) < profile.model.n_layers * profile.model.n_heads:
        sizes = [profile.model.n_heads] * profile.model.n_layers
        try:
            drawn = random_units(places, sizes, draws=controls, seed=seed)  # type: ignore[arg-type]
            names = [[f"L{layer}H{head}" for layer, head in draw] for draw in drawn]
        except UserError:
            names = []  # all heads of a layer were chosen, so it has no others
        if names:
            gains["random heads"] = np.mean([profile.gain(name, gamma) for name in names], axis=0)
    lines = []
    for name, own in gains.items():
        p = paired_p(own, clusters, seed=seed, alternative="greater")
        scores = scored(plain + own, seed=seed, clusters=clusters)
        lines.append({"model": name, **scores, "gain": own.mean(), "p": float("nan") if name == "random heads" else p})
    return pd.DataFrame(lines)
