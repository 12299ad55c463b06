"""Guidance by a weaker version of the tuned model itself: the new skill pushed on, the kept abilities watched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import interventions as iv
from probes.call_settings import call_settings
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, scored, with_q
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import kl_per_token
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.behaviour.texts import repetition
from workbench.errors import UserError
from workbench.method_options import As, Within
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode


@dataclass(frozen=True, kw_only=True)
class GuidanceFront(ProbeResult):
    """New skill against kept ability for every weak model and strength of guidance.

    ``table``: weak (lambda, the share of the update that the weak model has), strength; ``score`` (the behaviour in
    sampled texts) with interval; ``control``, the score when the tuned model's own distribution is sharpened as much
    without a weak model; ``q`` for the difference; ``kept_kl`` (nats per token from the tuned model on other prompts,
    with kept_low, kept_high; NaN without them); ``repetition``; ``front``: no other line has more of the behaviour for
    less change. Strength 0 is the tuned model.
    """

    behaviour: str
    resampled: str = "prompts"

    title: ClassVar[str] = "Guidance by a weak model"
    unit: ClassVar[str] = "behaviour in the texts"

    def figure(self) -> go.Figure:
        """Behaviour against change on other prompts; a line per weak model."""
        drawn = go.Figure([
            go.Scatter(x=part["kept_kl"], y=part["score"], name=f"lambda {weak:g}", mode="lines+markers+text",
                       text=[f"{strength:g}" for strength in part["strength"]], textposition="top center")
            for weak, part in self.table.groupby("weak")
        ])  # fmt: skip
        drawn.update_layout(
            title=self.title, xaxis_title="KL from the tuned model on other prompts (nats per token)",
            yaxis_title=self.behaviour,
        )  # fmt: skip
        return drawn

    def summary(self) -> str:
        """Every line of the front."""
        said = "; ".join(
            f"lambda {row.weak:g}, s {row.strength:g}: {row.score:.2g} [{row.low:.2g}, {row.high:.2g}] "
            f"(sharpened alone {row.control:.2g})"
            for row in self.table[self.table["front"]].itertuples()
        )
        return f"{self.behaviour} on the front: {said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "guidance",
    group="decoding",
    question="Does pushing away from a weaker version of the model strengthen what tuning taught?",
    papers=("Steering Guidance for Personalized Text-to-Image Diffusion Models",),
    cost="two sampled generations per weak model and strength",
    example="--behaviour refusal --strengths 1 --samples 1",
)
def guidance_front(  # noqa: PLR0913
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    behaviour: Annotated[str | Behaviour, As("behaviour")] = "refusal",
    *,
    weak: list[float] | None = None,
    strengths: list[float] | None = None,
    kept: Annotated[Any, As("prompts")] = None,
    plausibility: Annotated[float, Within(0, 1)] = 0.1,
    samples: int = 2,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> GuidanceFront:
    """Write with logits of tuned + s * (tuned - weak), where weak has the share lambda of tuning's update.

    Two sliders, lambda and s, and no second network: the weak model is the same adapter turned down (lambda 0 is the
    base, for any kind of pair). Only words with ``plausibility`` of the likeliest word's probability under the tuned
    model can be written, without which large s breaks the text.

    Args:
        pair: Base and tuned model; an adapter that can be scaled, for lambda above 0.
        prompts: Where the new skill shows.
        behaviour: The new skill, as text shows it.
        weak: Values of lambda; by default 0 and 0.5, without an adapter 0.
        strengths: Values of s; by default 0.5, 1 and 3. 0 is always among them.
        kept: Prompts on which the model should stay as it is.
        plausibility: The cut, by the tuned model.
        samples: Sampled texts per prompt.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of samples and resampling.

    Returns:
        A :class:`GuidanceFront`. For a base against itself every strength is sharpening alone, as the control is.

    Raises:
        UserError: No samples, lambda outside 0 to 1, or above 0 without an adapter.
    """
    check_pair(pair, prompts)
    if samples < 1:
        raise UserError("Give samples of 1 or more: greedy texts cannot tell guidance from sharpening.")
    shares = ([0.0] if pair.adapter is None else [0.0, 0.5]) if weak is None else weak
    if not all(0 <= share < 1 for share in shares):
        raise UserError("A weak model has a share lambda of the update, from 0 (the base) up to but not 1 (tuned).")
    levels = sorted({0.0, *([0.5, 1.0, 3.0] if strengths is None else strengths)})
    rows, rule, work = Prompts.of(prompts), read_behaviour(behaviour), Work(batch_size, progress)
    voices = {share: _weak_voice(pair, share) for share in shares}
    beside = None if kept is None else Prompts.of(kept)
    with counted(pair.base, pair.tuned) as passes:
        trial = FrontTrial(pair.tuned, rows, rule, Decoding(max_new_tokens, samples, seed=seed), work, beside)
        sharp = {s: trial.values(_sharpened(s, plausibility))[0] for s in levels}
        lines = [
            trial.line(share, s, (_guided(voice, s, plausibility), _guided(voice, s, 0.0)), sharp[s], seed)
            for (share, voice), s in itertools.product(voices.items(), levels)
        ]
    table = pd.DataFrame(lines)
    return GuidanceFront(
        table=with_q(table).assign(front=front_of(table)),
        control="the tuned model's distribution to the power 1 + s, with the same cut and the same random numbers",
        provenance=Provenance.of(
            "guidance_front", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, kept=beside),
        ),
        behaviour=rule.name, resampled=units_of(rows.clusters),
    )  # fmt: skip


def _weak_voice(pair: ModelPair, share: float) -> iv.Voice:
    if share == 0:
        return iv.Voice(pair.base)
    if pair.adapter is None:
        raise UserError("Lambda above 0 turns an adapter down, and this pair has none: give weak=[0].")
    voice = iv.Voice(pair.tuned, adapter_scale=share)
    voice.validate()
    return voice


def _guided(voice: iv.Voice, strength: float, plausibility: float) -> iv.Recipe:
    weak = iv.Voice(voice.model, -strength, voice.prefix, voice.adapter_scale)
    return iv.Recipe([iv.LogitMix({"weak": weak}, 1 + strength, plausibility=plausibility)])


def _sharpened(strength: float, plausibility: float) -> iv.Recipe:
    return iv.Recipe([iv.LogitMix({}, 1 + strength, plausibility=plausibility)])


class FrontTrial:
    """A model's sampled texts under a recipe, and how far the recipe moves its answers to other prompts."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, rule: Behaviour, decoding: Decoding, work: Work,
        other_prompts: Prompts | None,
    ) -> None:  # fmt: skip
        self.model, self.rows, self.rule, self.decoding, self.work = model, rows, rule, decoding, work
        self.other_prompts = other_prompts
        if other_prompts is not None:
            plain = generate_replies(Subject(model.role, model), other_prompts, Decoding(decoding.max_new_tokens), work)
            self.answers = [list(drawn[0].ids) for drawn in plain]
            self.ids = encode(other_prompts, model.tokenizer, model.max_positions)

    def values(self, recipe: iv.Recipe) -> tuple[np.ndarray, float]:
        """Mean score of each prompt's sampled texts, and how much they repeat."""
        replies = generate_replies(Subject("guided", self.model, recipe), self.rows, self.decoding, self.work)
        scores = np.array([
            np.mean([self.rule(draw.text, row) for draw in drawn[1:]])
            for row, drawn in zip(self.rows, replies, strict=True)
        ])  # fmt: skip
        return scores, float(np.mean([repetition(reply.content) for drawn in replies for reply in drawn[1:]]))

    def line(
        self, share: float, strength: float, recipes: tuple[iv.Recipe, iv.Recipe], sharp: np.ndarray, seed: int
    ) -> dict[str, Any]:
        """Texts are written with the first recipe; what moved is read with the second, which rules no word out."""
        values, repeats = self.values(recipes[0])
        line = beside_control(values, sharp, self.rows.clusters, seed=seed, share=self.rule.share)
        moved = self.moved(Subject("guided", self.model, recipes[1]), seed)
        return {"weak": share, "strength": strength, **line, **moved, "repetition": repeats}

    def moved(self, guided: Subject, seed: int) -> dict[str, float]:
        """KL per token of ``guided`` from the model on the kept prompts, with its interval."""
        if self.other_prompts is None:
            return dict.fromkeys(("kept_kl", "kept_low", "kept_high"), float("nan"))
        plain = Subject(self.model.role, self.model)
        (moved,) = kl_per_token(plain, [guided], self.ids, self.answers, self.work)
        divergence = scored(moved[:, 0], seed=seed, clusters=self.other_prompts.clusters)
        return {"kept_kl": divergence["score"], "kept_low": divergence["low"], "kept_high": divergence["high"]}


def front_of(table: pd.DataFrame) -> list[bool]:
    """Lines that no other line beats in both; without kept prompts, those of the highest score."""
    cost = table["kept_kl"].fillna(0.0).to_numpy()
    score = table["score"].to_numpy()
    return [
        not bool((((score >= s) & (cost < c)) | ((score > s) & (cost <= c))).any())
        for s, c in zip(score, cost, strict=True)
    ]
