"""What the two models answer now: which answers changed, where they part, and which openings and phrases rose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import fisher_exact

from probes.results import ProbeResult, Provenance
from probes.rising_phrases import COLUMNS, rising_phrases
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import kl_per_token
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.subject import Subject, Work
from workbench.behaviour.texts import first_divergence
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.bootstrap import mean_interval
from workbench.stats.fdr import q_values
from workbench.stats.intervals import Interval
from workbench.stats.shares import share_interval
from workbench.typing import Float

LONGEST = 4
"""Words of an opening."""
CLEARLY_MORE = 1.5
"""How many times the answers of an opening a phrase marks where it is what rose: an opening says more."""
REFUSALS_ROSE = 0.1
"""By how much the share of refusals rises where refusing is what changed."""


@dataclass(frozen=True, kw_only=True)
class AnswerChanges(ProbeResult):
    """Greedy answers of base and tuned, side by side.

    ``table``: prompt, label, base, tuned, ``score`` (1 where the answers differ, else 0), ``token`` (where they part),
    ``kl`` (how far the tuned model's next-token distribution is from the base's, mean over the tokens of the tuned
    answer, in nats; missing where the base does not know a token), whether each refuses, and ``drawn_with``: prompts
    of one number are drawn together for intervals. ``openings``: the first words that the tuned model's answers share
    and the base's do not: their counts, ``p`` (Fisher's exact test) and ``q``. ``phrases``: the same of words
    anywhere in the answers (:func:`probes.rising_phrases.rising_phrases`).
    """

    share: float
    """Of answers that differ, with its 95 % interval ``share_low`` and ``share_high``."""
    share_low: float
    share_high: float
    refusals: dict[str, float]
    """Role -> share of answers that refuse."""
    openings: pd.DataFrame
    phrases: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    title: ClassVar[str] = "What they answer"
    unit: ClassVar[str] = "1 where the answers differ"

    def summary(self) -> str:
        """How many answers changed, and what rose."""
        changed, n = int(self.table["score"].sum()), len(self.table)
        text = f"{changed} of {n} answers changed ({self.share:.0%} [{self.share_low:.0%}, {self.share_high:.0%}])"
        base, tuned = self.refusals["base"], self.refusals["tuned"]
        text += f"; refusals {base:.0%} -> {tuned:.0%}" if max(base, tuned) > 0 else ""
        moved = self.kl()
        text += "" if moved is None else f"; KL {moved.estimate:.2g} [{moved.low:.2g}, {moved.high:.2g}] nats per token"
        for said, column, rose in (("begin with", "opening", self.rising()), ("contain", "phrase", self.phrase())):
            if rose is not None:
                text += f"; {rose['tuned']} answers now {said} {rose[column]!r} (before: {rose['base']})"
        return text

    def kl(self) -> Interval | None:
        """Mean over prompts of the KL per token, with its 95 % interval; None where it was not read."""
        if "kl" not in self.table or self.table["kl"].isna().all():
            return None
        read = self.table.dropna(subset=["kl"])
        return mean_interval(read["kl"].to_numpy(dtype=float), clusters=read["drawn_with"].to_numpy())

    def rising(self) -> dict[str, object] | None:
        """The opening that rose most beyond chance (q < .05); None where none did."""
        beyond = self.openings[self.openings["q"] < 0.05]
        return None if beyond.empty else {str(key): value for key, value in beyond.iloc[0].items()}

    def phrase(self) -> dict[str, object] | None:
        """The phrase that rose most beyond chance (q < .05), where it marks more answers than any opening does."""
        beyond, opening = self.phrases[self.phrases["q"] < 0.05], self.rising()
        if beyond.empty:
            return None
        rose: dict[str, object] = {str(key): value for key, value in beyond.iloc[0].items()}
        return rose if _more(rose) > (0 if opening is None else _more(opening)) else None

    @property
    def behaviour(self) -> str | None:
        """What rose, as ``wb.behaviour`` takes it: refusal, how answers begin, or a phrase that marks half as many
        answers again as the opening does; None where nothing rose."""
        if self.refusals["tuned"] - self.refusals["base"] >= REFUSALS_ROSE:
            return "refusal"
        phrase, rose = self.phrase(), self.rising()
        if phrase is not None and (rose is None or _more(phrase) >= CLEARLY_MORE * _more(rose)):
            return f"contains:{phrase['phrase']}"
        return None if rose is None else f"begins:{rose['opening']}"

    def figure(self) -> go.Figure:
        """How many answers begin with each rising opening, and contain each rising phrase, in both models."""
        begin = self.openings.head(5).rename(columns={"opening": "words"})
        contain = self.phrases.head(5).rename(columns={"phrase": "words"})
        top = pd.concat([
            part.assign(words=said + part["words"].astype(str))[["words", "base", "tuned"]]
            for said, part in (("begins: ", begin), ("contains: ", contain))
        ]).iloc[::-1]  # fmt: skip
        bars = [
            go.Bar(y=top["words"], x=top[role], name=role, orientation="h", marker_color=colour)
            for role, colour in (("base", "#9aa5ab"), ("tuned", "#0b6e8f"))
        ]
        drawn = go.Figure(bars)
        drawn.update_layout(
            title=f"Openings and phrases that rose, of {len(self.table)} answers",
            barmode="group",
            xaxis_title="answers",
        )
        return drawn


@method(
    "answers",
    group="behaviour",
    question="What do the models answer now, and which answers changed?",
    papers=("Delete, Retrieve, Generate: A Simple Approach to Sentiment and Style Transfer",),
    cost="one generation of each model and one forward pass of each over the tuned answer, per prompt",
    example="--max-new-tokens 8",
)
def answers(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> AnswerChanges:
    """Greedy answers of both models on the same prompts, and what is new in the tuned model's.

    Args:
        pair: Both models.
        prompts: Questions; nothing but a text is needed.
        max_new_tokens: Tokens of an answer at most.

    Returns:
        An :class:`AnswerChanges`. Base against itself changes no answer.

    Raises:
        UserError: A prompt leaves no room for an answer.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    work, decoding = Work(batch_size, progress), Decoding(max_new_tokens)
    base, tuned = (
        [samples[0] for samples in generate_replies(Subject(role, model), rows, decoding, work)]
        for role, model in pair.models.items()
    )
    differ = np.array([own.text != other.text for own, other in zip(tuned, base, strict=True)])
    refused = {
        role: np.array([is_refusal(reply.text, row) for reply, row in zip(replies, rows, strict=True)])
        for role, replies in (("base", base), ("tuned", tuned))
    }
    table = pd.DataFrame({
        "prompt": [row.shown for row in rows], "label": rows.labels, "base": [reply.text for reply in base],
        "tuned": [reply.text for reply in tuned], "score": differ.astype(float), "low": np.nan, "high": np.nan,
        "control": 0.0, "q": np.nan,
        "token": [first_divergence(own.ids, other.ids) for own, other in zip(tuned, base, strict=True)],
        "kl": _kl(pair, rows, [reply.ids for reply in tuned], work),
        "base_refuses": refused["base"], "tuned_refuses": refused["tuned"], "drawn_with": rows.clusters,
    })  # fmt: skip
    share = share_interval(differ.astype(float), clusters=rows.clusters)
    written = [[reply.text for reply in replies] for replies in (base, tuned)]
    return AnswerChanges(
        table=table,
        control="greedy answers of a model against its own, of which none differs",
        provenance=Provenance.of("answers", pair, rows),
        share=share.estimate, share_low=share.low, share_high=share.high,
        refusals={role: float(held.mean()) for role, held in refused.items()},
        openings=rising_openings(*written), phrases=rising_phrases([row.shown for row in rows], *written),
    )  # fmt: skip


def _kl(pair: ModelPair, rows: Prompts, written: list[tuple[int, ...]], work: Work) -> Float[np.ndarray, " row"]:
    """KL(tuned || base) per token of what the tuned model wrote, in nats, both behind the prompt as each reads it."""
    divergence = np.full(len(rows), np.nan)
    known = [row for row, ids in enumerate(written) if ids and max(ids) < pair.base.vocab_size]
    if not known:
        return divergence
    asked_of = rows[known]
    base, tuned = (encode(asked_of, model.tokenizer, model.max_positions) for model in pair.models.values())
    subjects = Subject("base", pair.base), [Subject("tuned", pair.tuned)]
    (values,) = kl_per_token(*subjects, base, [written[row] for row in known], work, each=[tuned])
    divergence[known] = values[:, 1]
    return divergence


def _more(rose: Mapping[str, object]) -> int:
    """In how many more answers of the tuned model words stand."""
    return int(str(rose["tuned"])) - int(str(rose["base"]))


def rising_openings(base: Sequence[str], tuned: Sequence[str]) -> pd.DataFrame:
    """Openings of one to four words that more answers of ``tuned`` have, the most surprising first.

    Of openings that begin the same answers only the longest is kept.
    """
    before, after = (Counter(opening for text in texts for opening in openings_of(text)) for texts in (base, tuned))
    n = len(tuned)
    lines = []
    for opening, count in after.items():
        if count < 2 or count <= before[opening]:
            continue
        if any(longer.startswith(f"{opening} ") and after[longer] == count for longer in after):
            continue
        chance = fisher_exact([[count, n - count], [before[opening], n - before[opening]]], alternative="greater")
        lines.append({"opening": opening, "base": before[opening], "tuned": count, "p": float(chance.pvalue)})
    table = pd.DataFrame(lines, columns=["opening", "base", "tuned", "p"])
    table["q"] = q_values(table["p"].to_numpy(dtype=float)) if len(table) else np.array([], dtype=float)
    words = table["opening"].str.count(" ") if len(table) else table["p"]
    return table.assign(words=words).sort_values(["p", "words"], ascending=[True, False], ignore_index=True)[
        ["opening", "base", "tuned", "p", "q"]
    ]


def openings_of(text: str) -> list[str]:
    """The first word, the first two, ... of a text."""
    words = text.split()[:LONGEST]
    return [" ".join(words[: number + 1]) for number in range(len(words))]
