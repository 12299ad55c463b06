"""Focused prefixes: what a prefix says, without what prefixes of its kind say anyway; and what leaks beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import interventions as iv
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts


@dataclass(frozen=True, kw_only=True)
class FocusedPrefix(ProbeResult):
    """What texts show under a prefix whose general part is taken away.

    ``table``: alpha, behaviour, ``wanted`` (whether it was asked for), ``score`` in the texts with interval,
    ``control`` (the score with alpha 1, the plain prefix, which takes nothing away), ``plain`` (without any prefix),
    ``q`` for the difference from the control. A behaviour that was not asked for is leakage: it should stay at
    ``plain``.
    """

    texts: pd.DataFrame
    """alpha, prompt, text."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Focused prefix"
    unit: ClassVar[str] = "behaviour in the texts"

    def figure(self) -> go.Figure:
        """Every behaviour against alpha."""
        drawn = go.Figure([
            go.Scatter(x=part["alpha"], y=part["score"], mode="lines+markers",
                       name=f"{name}{'' if bool(part['wanted'].iloc[0]) else ' (not asked for)'}")
            for name, part in self.table.groupby("behaviour", sort=False)
        ])  # fmt: skip
        drawn.update_layout(title=self.title, xaxis_title="alpha", yaxis_title=self.unit)
        return drawn

    def summary(self) -> str:
        """What was asked for, and what leaked, at the highest alpha."""
        top = self.table[self.table["alpha"] == self.table["alpha"].max()]
        said = ", ".join(
            f"{row.behaviour}{'' if row.wanted else ' (not asked for)'} {row.score:.2g} "
            f"[{row.low:.2g}, {row.high:.2g}] (plain prefix {row.control:.2g}, none {row.plain:.2g})"
            for row in top.itertuples()
        )
        return f"alpha {top['alpha'].iloc[0]:g}: {said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "focused-prefix",
    group="decoding",
    question="Does taking a general prefix away leave only the attribute that was asked for?",
    papers=("Focused Prefix Tuning for Controllable Text Generation",),
    cost="one generation per alpha, with three voices of one model",
    example="--wanted 'be brief . ' --general 'write . ' --behaviours length --alphas 1,2",
)
def focused_prefix(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    wanted: list[str],
    general: str,
    behaviours: list[str],
    *,
    asked_for: int = 1,
    alphas: list[float] | None = None,
    plausibility: Annotated[float, Within(0, 1)] = 0.1,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> FocusedPrefix:
    """Write with logits alpha * specific - (alpha - 1) * general, each read behind a prefix of its own.

    Focused Prefix Tuning's decoding with prefixes of text in place of trained ones: the general prefix says what the
    specific one says beside its attribute, and is subtracted. Several prefixes are several attributes at once; each
    gets an equal share.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: What the texts continue.
        wanted: Prefixes that ask for one attribute each.
        general: The prefix that asks for none of them and is like them in all else.
        behaviours: What to score of the texts; those that were asked for come first.
        asked_for: How many of the behaviours were asked for; the others are leakage.
        alphas: Values of alpha; 1 takes nothing away and is always among them; by default 1, 1.5, 2 and 3.
        plausibility: Words below this share of the likeliest word's probability behind the first wanted prefix are
            never written.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of resampling and tests.

    Returns:
        A :class:`FocusedPrefix`. With the general prefix as the wanted one, every alpha writes the same.

    Raises:
        UserError: No prefix or behaviour, or more asked for than there are behaviours.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    if not wanted or not behaviours or not 0 < asked_for <= len(behaviours):
        raise UserError("Give a prefix or more, behaviours to score, and how many of these were asked for, from 1 on.")
    rules = [read_behaviour(behaviour) for behaviour in behaviours]
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    levels = sorted({1.0, *([1.5, 2.0, 3.0] if alphas is None else alphas)})
    with counted(model) as passes:
        plain, _ = _scores(Subject("plain", model), rows, rules, max_new_tokens, work)
        scores, parts = {}, []
        for alpha in levels:
            recipe = iv.Recipe([focused_mix(model, wanted, general, alpha, plausibility)])
            scores[alpha], texts = _scores(Subject("focused", model, recipe), rows, rules, max_new_tokens, work)
            parts.append(pd.DataFrame({"alpha": alpha, "prompt": range(len(texts)), "text": texts}))
    lines = [
        _line(alpha, place, rule, scores, plain, rows, seed) | {"wanted": place < asked_for}
        for alpha in levels for place, rule in enumerate(rules)
    ]  # fmt: skip
    return FocusedPrefix(
        table=with_q(lines),
        control="the wanted prefix alone (alpha 1)",
        provenance=Provenance.of("focused_prefix", model, rows, seed=seed, forward_passes=passes.forward),
        texts=pd.concat(parts, ignore_index=True), resampled=units_of(rows.clusters),
    )  # fmt: skip


def focused_mix(
    model: AdaptedModel, wanted: Sequence[str], general: str, alpha: float, plausibility: float = 0.1
) -> iv.LogitMix:
    """The decoding of :func:`focused_prefix` as an intervention on ``model``."""
    voices = {f"wanted {n}": iv.Voice(model, alpha / len(wanted), prefix=prefix) for n, prefix in enumerate(wanted)}
    voices["general"] = iv.Voice(model, 1.0 - alpha, prefix=general)
    return iv.LogitMix(voices, 0.0, plausibility=plausibility, judge="wanted 0")


def _scores(
    subject: Subject, rows: Prompts, rules: Sequence[Behaviour], max_new_tokens: int, work: Work
) -> tuple[np.ndarray, list[str]]:
    """[behaviour, prompt] of the greedy texts, and the texts."""
    texts = [reply[0].text for reply in generate_replies(subject, rows, Decoding(max_new_tokens), work)]
    return np.array([[rule(text, row) for text, row in zip(texts, rows, strict=True)] for rule in rules]), texts


def _line(
    alpha: float, place: int, rule: Behaviour, scores: dict[float, np.ndarray], plain: np.ndarray, rows: Prompts,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    values, before = scores[alpha][place], scores[1.0][place]
    line = beside_control(values, before, rows.clusters, seed=seed, share=rule.share)
    return {"alpha": alpha, "behaviour": rule.name, **line, "plain": float(plain[place].mean())}
