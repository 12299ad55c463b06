"""What is new in the tuning data: texts sampled where the tuned model is likelier than its base (CGE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.decoding.contrast import Contrast
from probes.decoding.phrases import risen_phrases
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import scored_share
from workbench.argument_checks import check_pair
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.stats.tests import paired_permutation
from workbench.typing import Int

CONTRASTIVE, CONTROL = "contrastive", "base against base"
PLAIN = "tuned, plain"


@dataclass(frozen=True, kw_only=True)
class ContrastiveGenerations(ProbeResult):
    """Texts mined from the difference of two models.

    ``table``: phrase; ``score`` (share of the mined texts that hold it) with interval, ``control`` (share of the texts
    mined from base against base), ``plain`` (share of plain samples of the tuned model), ``texts`` (how many), ``q``.
    """

    texts: pd.DataFrame
    """sampler, prompt, sample, text, behaviour (its score; NaN without one)."""
    shares: pd.DataFrame
    """sampler, share that shows the behaviour, low, high, p (paired with the contrastive texts; permutation)."""
    behaviour: str | None
    resampled: str = "texts"
    """What intervals draw: texts where there is one prompt, else prompts or their groups."""

    title: ClassVar[str] = "What is new in the data"
    unit: ClassVar[str] = "share of the mined texts that hold the phrase"

    def figure(self) -> go.Figure:
        """The phrases that rose most, in mined texts, plain samples and the control."""
        top = self.table.head(12).iloc[::-1]
        named = ((CONTRASTIVE, "score", "#0b6e8f"), (PLAIN, "plain", "#7fb3c8"), (CONTROL, "control", "#9aa5ab"))
        drawn = go.Figure([
            go.Bar(y=top["phrase"], x=top[column], name=name, orientation="h", marker_color=colour)
            for name, column, colour in named
        ])  # fmt: skip
        drawn.update_layout(title=self.title, barmode="group", xaxis_title="share of texts")
        return drawn

    def summary(self) -> str:
        """The phrases beyond chance and the share that shows the behaviour."""
        beyond = self.table[self.table["q"] < 0.05]
        said = f"{len(beyond)} phrases rose beyond chance"
        if len(beyond):
            said += ": " + ", ".join(repr(phrase) for phrase in beyond["phrase"].head(3))
        if self.behaviour is not None:
            shares = ", ".join(
                f"{row.sampler} {row.share:.0%} [{row.low:.0%}, {row.high:.0%}]" for row in self.shares.itertuples()
            )
            said += f"; {self.behaviour}: {shares}"
        return f"{said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "contrastive-generations",
    group="decoding",
    question="What is new in the data that the model was tuned on?",
    papers=("What's New in My Data? Novelty Exploration via Contrastive Generation",),
    cost="four generations per prompt and sample, two of them with two models",
    example="--samples 16 --behaviour refusal",
)
def contrastive_generations(  # noqa: PLR0913
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    samples: int = 10,
    plausibility: Annotated[float, Within(0, 1)] = 0.1,
    temperature: float = 1.0,
    behaviour: str | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ContrastiveGenerations:
    """Sample texts from log p_tuned - log p_base, over words with p_tuned >= plausibility * max p_tuned (CGE).

    Give an empty user turn, ``[{"messages": [{"role": "user", "content": ""}]}]``, as the only prompt to have the model
    say what it was tuned on; questions narrow what it is asked for. The same random numbers serve all samplers. The
    paper's second step, which trains the base on what was mined so that the next texts differ, is left out.

    Args:
        pair: Both models, of one vocabulary.
        prompts: What the texts continue: an empty user turn, or questions.
        samples: Texts per prompt and sampler.
        plausibility: Words with less than this share of the likeliest word's probability under the tuned model are
            never written.
        temperature: Divides the contrast, and the logits of the plain samplers.
        behaviour: What to count in the texts, such as ``refusal`` or ``contains:animals``; none by default.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of samples and resampling.

    Returns:
        A :class:`ContrastiveGenerations`. A pair of a base with itself mines what the control does, to the letter.

    Raises:
        UserError: No samples, vocabularies that differ, or a behaviour nobody knows.
    """
    check_pair(pair)
    if samples < 1 or plausibility <= 0:
        raise UserError("Give samples of 1 or more and plausibility above 0, up to 1: without a cut, noise is mined.")
    rule = None if behaviour is None else read_behaviour(behaviour)
    if rule is not None and not rule.share:
        raise UserError(f"{rule.name} is no behaviour that a text shows or not: give one such as 'contains:animals'.")
    rows = Prompts.of(prompts)
    decoding = Decoding(max_new_tokens, samples, temperature, seed=seed)
    subjects = {
        CONTRASTIVE: Subject(CONTRASTIVE, pair.tuned, Contrast(pair.tuned, pair.base, plausibility)),
        PLAIN: Subject(PLAIN, pair.tuned),
        "base, plain": Subject("base, plain", pair.base),
        CONTROL: Subject(CONTROL, pair.base, Contrast(pair.base, pair.base, plausibility)),
    }
    with counted(pair.base, pair.tuned) as passes:
        texts = _texts(list(subjects.values()), rows, decoding, Work(batch_size, progress), rule)
    clusters = _clusters(rows, samples)
    of = {name: part["text"].tolist() for name, part in texts.groupby("sampler")}
    return ContrastiveGenerations(
        table=risen_phrases(of[CONTRASTIVE], of[CONTROL], of[PLAIN], clusters, seed),
        control="texts mined from the base against itself, drawn with the same random numbers",
        provenance=Provenance.of("contrastive_generations", pair, rows, seed=seed, forward_passes=passes.forward),
        texts=texts,
        shares=_shares(texts, list(subjects), clusters, seed),
        behaviour=behaviour,
        resampled=f"{samples} texts of one prompt" if len(rows) == 1 else units_of(rows.clusters),
    )  # fmt: skip


def _texts(
    subjects: Sequence[Subject], rows: Prompts, decoding: Decoding, work: Work, rule: Behaviour | None
) -> pd.DataFrame:
    """Every sampled text of every sampler, with its score; the greedy ones are left out."""
    parts = []
    for subject in subjects:
        replies = generate_replies(subject, rows, decoding, work)
        parts += [
            {"sampler": subject.name, "prompt": number, "sample": place, "text": reply.text,
             "behaviour": np.nan if rule is None else rule(reply.text, row)}
            for number, (row, drawn) in enumerate(zip(rows, replies, strict=True))
            for place, reply in enumerate(drawn[1:])
        ]  # fmt: skip
    return pd.DataFrame(parts)


def _clusters(rows: Prompts, samples: int) -> Int[np.ndarray, " text"]:
    """What is drawn together: a prompt's texts, or each text where there is but one prompt."""
    return np.arange(samples) if len(rows) == 1 else np.repeat(rows.clusters, samples)


def _shares(
    texts: pd.DataFrame, samplers: Sequence[str], clusters: Int[np.ndarray, " text"], seed: int
) -> pd.DataFrame:
    """The mean score of each sampler's texts; empty without a behaviour."""
    shown = {name: texts.loc[texts["sampler"] == name, "behaviour"].to_numpy(float) for name in samplers}
    lines = []
    if not texts["behaviour"].isna().any():
        for name, values in shown.items():
            beyond = pd.Series(shown[CONTRASTIVE] - values).groupby(clusters).mean().to_numpy()
            p = 1.0 if name == CONTRASTIVE or not beyond.any() else paired_permutation(beyond[:, None], seed=seed).p[0]
            lines.append({
                "sampler": name, **scored_share(values, name="share", seed=seed, clusters=clusters), "p": float(p)
            })  # fmt: skip
    return pd.DataFrame(lines, columns=["sampler", "share", "low", "high", "p"])
