"""token_guidance: a rule on whole texts decomposed into scores of tokens that guide the base, beside tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import interventions as iv
from probes.call_settings import call_settings
from probes.decoding.guidance import FrontTrial, front_of
from probes.halves import halves
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_pair
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.behaviour.texts import repetition
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.typing import Float

TUNED = "tuned"


@dataclass(frozen=True, kw_only=True)
class TokenGuidance(ProbeResult):
    """The attribute against the price, of the guided base and of the tuned model.

    ``table``: how ("guided" at a strength, or "tuned"), strength; ``score``, the attribute in sampled texts on the
    prompts that did not fit the tokens' scores, with its interval; ``control``, under the same scores given to other
    tokens (of the tuned model: the plain base), ``q`` of the difference; ``kept_kl`` (nats per token from the base on
    other prompts; NaN without them) with its interval, ``repetition``, ``front``: no other line has more of the
    attribute for less change.
    """

    behaviour: str
    tokens: pd.DataFrame
    """token_id, token, score, with_, without: how often it stood in texts with and without the attribute."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Token-level guidance beside the tuned model"
    unit: ClassVar[str] = "attribute in the texts"

    def recipe(self, strength: float = 1.0) -> iv.Recipe:
        """The scores as an intervention."""
        return guided(dict(zip(self.tokens["token_id"], self.tokens["score"], strict=True)), strength)

    def figure(self) -> go.Figure:
        """Attribute against change on other prompts."""
        drawn = go.Figure([
            go.Scatter(x=part["kept_kl"].fillna(0), y=part["score"], name=how, mode="lines+markers+text",
                       text=[f"{strength:g}" for strength in part["strength"]], textposition="top center")
            for how, part in self.table.groupby("how")
        ])  # fmt: skip
        drawn.update_layout(
            title=self.title, xaxis_title="KL from the base on other prompts (nats per token)",
            yaxis_title=self.behaviour,
        )  # fmt: skip
        return drawn

    def summary(self) -> str:
        """Every line."""
        said = "; ".join(_said(row) for row in self.table.to_dict("records"))
        priced = "" if self.table["kept_kl"].notna().any() else " No prompts to keep, so the price is not told."
        return f"{self.behaviour}: {said}; intervals over {self.resampled}.{priced} Control: {self.control}."


def _said(row: Mapping[Any, Any]) -> str:
    """A line of the table; the front and its price where there were prompts to keep."""
    strength = "" if np.isnan(row["strength"]) else f" {row['strength']:g}"
    price = "" if np.isnan(row["kept_kl"]) else f", KL {row['kept_kl']:.2g}"
    front = " on the front" if price and row["front"] else ""
    score = f"{row['score']:.2g} [{row['low']:.2g}, {row['high']:.2g}]"
    return f"{row['how']}{strength}: {score} (control {row['control']:.2g}, q = {row['q']:.2g}{price}){front}"


@method(
    "token-guidance",
    group="attributes",
    question="Would scores of single tokens give the base the attribute as cheaply as tuning did?",
    papers=("Attribute Controlled Fine-tuning for Large Language Models: A Case Study on Detoxification",),
    cost="samples of one half of the prompts, then two sampled generations per strength and one of the tuned model",
    example="--behaviour punctuation --strengths 1 --samples 2 --max-new-tokens 8",
)
def token_guidance(  # noqa: PLR0913
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    behaviour: Annotated[str | Behaviour, As("behaviour")] = "refusal",
    *,
    strengths: list[float] | None = None,
    kept: Annotated[Any, As("prompts")] = None,
    samples: int = 4,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> TokenGuidance:
    """Learn from the base's own texts which tokens go with the attribute, and add their scores to its logits.

    The source trains an auxiliary model that decomposes a constraint on whole texts into token-level guidance, in whose
    closed form the wanted distribution is p(w) exp(r(w)), and regularises tuning by it. Here r is the smoothed log-odds
    of a token in texts with and without the attribute (above and below the median where it is a number), fitted on one
    half of the prompts, and the guided base stands beside the tuned model as the baseline of its front.

    Args:
        pair: Base and tuned model.
        prompts: What the texts answer.
        behaviour: The attribute, as text shows it.
        strengths: Factors of the scores; by default 0.5, 1 and 2. 0 is always among them; below 0: away from it.
        kept: Prompts on which the model should stay as the base is.
        samples: Sampled texts per prompt.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of halves, samples, the control and resampling.

    Returns:
        A :class:`TokenGuidance`; ``.recipe(1.0)`` guides.

    Raises:
        UserError: No samples, too few prompts, or an attribute that never varies in the texts.
    """
    check_pair(pair, prompts)
    if samples < 1:
        raise UserError("Give samples of 1 or more: tokens are scored on sampled texts.")
    levels = sorted({0.0, *([0.5, 1.0, 2.0] if strengths is None else strengths)})
    rows, rule, work = Prompts.of(prompts), read_behaviour(behaviour), Work(batch_size, progress)
    fit, reported = halves(rows, seed)
    beside = None if kept is None else Prompts.of(kept)
    decoding = Decoding(max_new_tokens, samples, seed=seed)
    with counted(pair.base, pair.tuned) as passes:
        counts, held = _texts(pair, fit, rule, decoding, work)
        tokens = token_scores(counts, held)
        trial = FrontTrial(pair.base, reported, rule, decoding, work, beside)
        other = _exchanged(tokens, seed)
        lines = [
            {"how": "guided", **_line(trial, guided(tokens, level), guided(other, level), level, seed)}
            for level in levels
        ]
        lines.append({"how": TUNED, **_tuned_line(pair, trial, seed)})
    table = pd.DataFrame(lines)
    return TokenGuidance(
        table=with_q(table).assign(front=front_of(table)),
        control="the same scores given to other tokens of the texts; beside the tuned model, the plain base",
        provenance=Provenance.of(
            "token_guidance", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, kept=beside),
        ),
        behaviour=rule.name,
        tokens=_tokens(tokens, counts, held, pair.tokenizer),
        resampled=units_of(reported.clusters),
    )  # fmt: skip


def guided(tokens: dict[int, float], strength: float) -> iv.Recipe:
    """Token scores as an intervention on the logits."""
    if not strength or not any(tokens.values()):
        return iv.Recipe([])
    return iv.Recipe([iv.TokenRules(biases={int(token): score for token, score in tokens.items()}, strength=strength)])


def token_scores(counts: Float[np.ndarray, "text token"], held: np.ndarray) -> dict[int, float]:
    """Smoothed log-odds of each token that occurs: its share in texts with the attribute over that in the others."""
    seen = np.flatnonzero(counts.any(0))
    sides = [counts[side][:, seen].sum(0) + 1.0 for side in (held, ~held)]
    scores = np.log(sides[0] / sides[0].sum()) - np.log(sides[1] / sides[1].sum())
    return {int(token): float(score) for token, score in zip(seen, scores, strict=True)}


def _texts(
    pair: ModelPair, rows: Prompts, rule: Behaviour, decoding: Decoding, work: Work
) -> tuple[Float[np.ndarray, "text token"], np.ndarray]:
    """How often each token stands in each sampled text of the base, and which texts have the attribute."""
    drawn = generate_replies(Subject("base", pair.base), rows, decoding, work)
    values, counts = [], []
    for row, replies in zip(rows, drawn, strict=True):
        for reply in replies[1:]:
            values.append(rule(reply.text, row))
            counts.append(np.bincount(np.array(reply.content, dtype=np.int64), minlength=pair.base.vocab_size))
    scores = np.array(values)
    held = scores > (0.5 if rule.share else np.median(scores))
    if held.all() or not held.any():
        raise UserError(f"{rule.name} is the same in all texts of one half of the prompts: nothing tells its tokens.")
    return np.array(counts, dtype=np.float64), held


def _exchanged(tokens: dict[int, float], seed: int) -> dict[int, float]:
    order = np.random.default_rng(seed).permutation(len(tokens))
    scores = np.array(list(tokens.values()))[order]
    return dict(zip(tokens, scores.tolist(), strict=True))


def _line(trial: FrontTrial, recipe: iv.Recipe, other: iv.Recipe, strength: float, seed: int) -> dict[str, Any]:
    values = trial.values(other)[0]
    line = trial.line(0.0, strength, (recipe, recipe), values, seed)
    return {name: value for name, value in line.items() if name != "weak"}


def _tuned_line(pair: ModelPair, trial: FrontTrial, seed: int) -> dict[str, Any]:
    plain = trial.values(iv.Recipe([]))[0]
    replies = generate_replies(Subject(TUNED, pair.tuned), trial.rows, trial.decoding, trial.work)
    values = np.array([
        np.mean([trial.rule(draw.text, row) for draw in drawn[1:]])
        for row, drawn in zip(trial.rows, replies, strict=True)
    ])  # fmt: skip
    return {
        "strength": float("nan"),
        **beside_control(values, plain, trial.rows.clusters, seed=seed, share=trial.rule.share),
        **trial.moved(Subject(TUNED, pair.tuned), seed),
        "repetition": float(np.mean([repetition(reply.content) for drawn in replies for reply in drawn[1:]])),
    }  # fmt: skip


def _tokens(tokens: dict[int, float], counts: np.ndarray, held: np.ndarray, tokenizer: Any) -> pd.DataFrame:
    frame = pd.DataFrame([
        {"token_id": token, "token": tokenizer.decode([token]), "score": score,
         "with_": int(counts[held][:, token].sum()), "without": int(counts[~held][:, token].sum())}
        for token, score in tokens.items()
    ])  # fmt: skip
    return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
