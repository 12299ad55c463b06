"""Two models write one text together, by turns that the small one's entropy decides (entropy-adaptive decoding)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.decoding.entropy_switch import Decisions, EntropySwitch
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import paired_p, scored, scored_share, with_q
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import logprobs
from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.figures.intervals import whiskers
from workbench.method_options import Within
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode


@dataclass(frozen=True, kw_only=True)
class EntropySwitching(ProbeResult):
    """Texts that base and tuned model wrote by turns.

    ``table``: one line per threshold: quantile, ``high`` and ``low`` (nats); ``share`` of tokens by the tuned model,
    ``switches`` per 100 tokens; ``score`` of the texts with interval (the behaviour, or without one the tuned model's
    log-probability per token); ``control``, the score when the same number of turns of the same lengths come at random
    places; ``q`` for the difference. The lines of quantile 0 and 1 are the tuned model alone and the base alone.
    """

    tokens: pd.DataFrame
    """quantile, prompt, step, token, writer (base or tuned), entropy (nats, base): a text coloured by its writer."""
    measured: str
    resampled: str = "prompts"

    title: ClassVar[str] = "Writing by turns"
    unit: ClassVar[str] = "score of the texts"

    def frame(self) -> pd.DataFrame:
        """The table by threshold."""
        return self.table.copy()

    def figure(self) -> go.Figure:
        """Score against the share of tokens that the tuned model wrote, beside random turns."""
        lines = self.table.sort_values("share")
        drawn = go.Figure([
            go.Scatter(x=lines["share"], y=lines["score"], name="by entropy", mode="lines+markers",
                       error_y=whiskers(lines, "score", "low_score", "high_score")),
            go.Scatter(x=lines["share"], y=lines["control"], name="random turns", mode="lines+markers",
                       line={"color": "#9aa5ab"}),
        ])  # fmt: skip
        drawn.update_layout(
            title=self.title, xaxis_title="share of tokens by the tuned model", yaxis_title=self.measured
        )
        return drawn

    def summary(self) -> str:
        """Scores against shares."""
        said = "; ".join(
            f"{share:.0%} of tokens by tuned: {score:.2g} [{low:.2g}, {high:.2g}]"
            + ("" if np.isnan(control) else f" (random turns {control:.2g})")
            for share, score, low, high, control in self.table[
                ["share", "score", "low_score", "high_score", "control"]
            ].to_numpy(dtype=float)
        )
        return f"{self.measured}: {said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "entropy-switching",
    group="decoding",
    question="How much of a text must the tuned model write, if it writes only where the base is unsure?",
    papers=("Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference",),
    cost="two generations with both models per threshold",
    example="--quantiles 0.5 --behaviour refusal",
)
def entropy_switching(  # noqa: PLR0913
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    quantiles: list[float] | None = None,
    hysteresis: Annotated[float, Within(0, 1)] = 0.5,
    window: int = 4,
    behaviour: str | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> EntropySwitching:
    """The base writes, and the tuned model takes over while the base's entropy over the last tokens is high.

    Entropy-adaptive decoding. Thresholds are quantiles of the rolling entropy in the base's own texts on these prompts.
    Any two models of one vocabulary are a pair, a small and a large one too. Both read every token here, as the trace
    needs; the share of tokens says what a machine that runs one at a time would save.

    Args:
        pair: The model that writes first (base) and the one that takes over (tuned).
        prompts: What the texts continue.
        quantiles: Above which quantile of the base's rolling entropy the tuned model takes over; by default 0.25, 0.5
            and 0.75.
        hysteresis: The base takes back below this share of the threshold; 1: at the threshold itself.
        window: Tokens over which entropy is averaged.
        behaviour: What to score of the texts, such as ``refusal``; by default the tuned model's log-probability.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of the random turns and resampling.

    Returns:
        An :class:`EntropySwitching`. A base with itself writes the same text whoever writes.

    Raises:
        UserError: A quantile outside 0 to 1, or no window.
    """
    check_pair(pair, prompts)
    asked_for = [0.25, 0.5, 0.75] if quantiles is None else quantiles
    if window < 1 or not asked_for or not all(0 < share < 1 for share in asked_for):
        raise UserError("Give a window of 1 token or more and quantiles between 0 and 1, such as 0.25, 0.5, 0.75.")
    rows = Prompts.of(prompts)
    rule = None if behaviour is None else read_behaviour(behaviour)
    writing = _Writing(pair, rows, Decoding(max_new_tokens), Work(batch_size, progress), rule, window)
    with counted(pair.base, pair.tuned) as passes:
        alone = writing.turns(float("inf"), float("inf"))
        lines = [writing.line(1.0, alone, None), writing.line(0.0, writing.turns(-1.0, -1.0), None)]
        tokens = [alone.tokens.assign(quantile=1.0)]
        for quantile in sorted(asked_for):
            high = float(np.quantile(alone.rolling(window), quantile))
            mixed = writing.turns(high, high * hysteresis)
            chance = writing.turns(high, high * hysteresis, script=mixed.shuffled(seed))
            lines.append({**writing.line(quantile, mixed, chance, seed), "high": high, "low": high * hysteresis})
            tokens.append(mixed.tokens.assign(quantile=quantile))
    table = pd.DataFrame(lines).sort_values("quantile", ignore_index=True)
    measured = "log-probability per token under the tuned model" if rule is None else rule.name
    return EntropySwitching(
        table=with_q(table),
        control="turns of the same lengths at random places",
        provenance=Provenance.of("entropy_switching", pair, rows, seed=seed, forward_passes=passes.forward),
        tokens=pd.concat(tokens, ignore_index=True), measured=measured, resampled=units_of(rows.clusters),
    )  # fmt: skip


@dataclass
class _Texts:
    """Texts of every prompt, and who wrote what."""

    replies: list[Reply]
    other: list[np.ndarray]
    entropy: list[np.ndarray]
    tokens: pd.DataFrame

    def rolling(self, window: int) -> np.ndarray:
        """The rolling mean entropy at every token of every text."""
        return np.concatenate([
            pd.Series(values).rolling(window, min_periods=1).mean().to_numpy() for values in self.entropy
        ])  # fmt: skip

    def shuffled(self, seed: int) -> list[np.ndarray]:
        """Per text the same turns in another order."""
        rng = np.random.default_rng(seed)
        return [_shuffled_turns(turns, rng) for turns in self.other]


def _shuffled_turns(other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turns keep their writer and their length, and come in a random order."""
    edges = np.flatnonzero(np.diff(other)) + 1
    turns = np.split(other, edges)
    order = rng.permutation(len(turns))
    return np.concatenate([turns[number] for number in order]) if len(other) else other


class _Writing:
    def __init__(
        self, pair: ModelPair, rows: Prompts, decoding: Decoding, work: Work, rule: Behaviour | None, window: int
    ) -> None:
        self.pair, self.rows, self.decoding, self.work = pair, rows, decoding, work
        self.rule, self.window = rule, window
        self.ids = encode(rows, pair.tokenizer, pair.base.max_positions)

    def turns(self, high: float, low: float, script: list[np.ndarray] | None = None) -> _Texts:
        """Every prompt's greedy text with these thresholds, or with turns by ``script``."""
        logs: dict[int, tuple[Decisions, int]] = {}

        def per_row(members: list[int]) -> EntropySwitch:
            log = Decisions()
            logs.update({row: (log, place) for place, row in enumerate(members)})
            turns = None if script is None else _padded([script[row] for row in members], self.decoding.max_new_tokens)
            return EntropySwitch(self.pair.tuned, high, low, self.window, log, turns)

        subject = Subject("turns", self.pair.base, per_row=per_row)
        replies = [reply[0] for reply in generate_replies(subject, self.rows, self.decoding, self.work)]
        other, entropy = [], []
        for row, reply in enumerate(replies):
            log, place = logs[row]
            other.append(torch.stack(log.other)[: len(reply.ids), place].numpy())
            entropy.append(torch.stack(log.entropy)[: len(reply.ids), place].numpy())
        return _Texts(replies, other, entropy, self._tokens(replies, other, entropy))

    def _tokens(self, replies: list[Reply], other: list[np.ndarray], entropy: list[np.ndarray]) -> pd.DataFrame:
        words = self.pair.tokenizer
        return pd.DataFrame([
            {"prompt": row, "step": step, "token": words.decode([token]),
             "writer": "tuned" if other[row][step] else "base", "entropy": float(entropy[row][step])}
            for row, reply in enumerate(replies) for step, token in enumerate(reply.ids)
        ], columns=["prompt", "step", "token", "writer", "entropy"])  # fmt: skip

    def scores(self, texts: _Texts) -> np.ndarray:
        """One score per prompt."""
        if self.rule is not None:
            return np.array([self.rule(reply.text, row) for reply, row in zip(texts.replies, self.rows, strict=True)])
        logs = logprobs(Subject("tuned", self.pair.tuned), self.ids, [reply.ids for reply in texts.replies], self.work)
        return logs.sum_ / np.maximum(logs.tokens, 1)

    def line(self, quantile: float, texts: _Texts, chance: _Texts | None, seed: int = 0) -> dict[str, Any]:
        """The columns of one threshold."""
        values = self.scores(texts)
        share = self.rule is not None and self.rule.share
        score = (scored_share if share else scored)(values, seed=seed, clusters=self.rows.clusters)
        line: dict[str, Any] = {"quantile": quantile, "score": score["score"], "low_score": score["low"]}
        line |= {"high_score": score["high"], "share": np.concatenate(texts.other).mean()}
        turns = sum(int(np.diff(turned.astype(int)).astype(bool).sum()) for turned in texts.other)
        line |= {"switches": 100 * turns / max(1, sum(map(len, texts.other))), "control": float("nan"), "p": 1.0}
        if chance is None:
            return line
        random = self.scores(chance)
        return {**line, "control": random.mean(), "p": paired_p(values - random, self.rows.clusters, seed=seed)}


def _padded(turns: list[np.ndarray], steps: int) -> Any:
    """[row, step]; behind a text's end its last writer goes on."""
    turned = np.zeros((len(turns), steps), dtype=bool)
    for row, turn in enumerate(turns):
        turned[row, : len(turn)] = turn
        turned[row, len(turn) :] = turn[-1] if len(turn) else False
    return torch.from_numpy(turned)
