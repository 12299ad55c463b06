"""Plug and play: a bag of words raised by gradients on keys and values while a text is written (PPLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.attributes.perturbed_cache import Push, PushedDecoding
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.behaviour.continuations import logprobs
from workbench.behaviour.generation import end_ids
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import JoinedProgress, Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, encode


@dataclass(frozen=True, kw_only=True)
class PlugAndPlay(ProbeResult):
    """Texts under a push towards a bag of words.

    ``table``: size of a step; ``score``, the share of a text's tokens that are of the bag, with interval; ``control``,
    the same when as many random words are pushed; ``perplexity`` of the texts under the plain model; ``mass_before``,
    ``mass_after`` (the bag's probability at a token, before the first step and after the last); ``q`` of the difference
    from the control. Size 0 is ordinary decoding.
    """

    texts: pd.DataFrame
    """size, prompt, text."""
    bag: list[str]
    random_bag: list[str]
    resampled: str = "prompts"

    title: ClassVar[str] = "Plug and play"
    unit: ClassVar[str] = "share of tokens of the bag"

    def figure(self) -> go.Figure:
        """Attribute against fluency."""
        drawn = go.Figure(
            go.Scatter(
                x=self.table["perplexity"], y=self.table["score"], mode="lines+markers+text",
                text=[f"{size:g}" for size in self.table["size"]], textposition="top center",
            )
        )  # fmt: skip
        drawn.update_layout(title=self.title, xaxis_title="perplexity under the plain model", yaxis_title=self.unit)
        return drawn

    def summary(self) -> str:
        """Every size."""
        said = ", ".join(
            f"step {row.size:g}: {row.score:.1%} [{row.low:.1%}, {row.high:.1%}] (random words {row.control:.1%}), "
            f"perplexity {row.perplexity:.3g}"
            for row in self.table.itertuples()
        )
        return f"{said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "pplm",
    group="decoding",
    question="Can a bag of words steer a text by gradients on its keys and values, and at what price in fluency?",
    papers=("Plug and Play Language Models: A Simple Approach to Controlled Text Generation",),
    cost="per token and batch: steps forward-backward passes and two forward passes, twice over for the control",
    example="--bag fox,dog --sizes 0.02 --max-new-tokens 4",
)
def pplm(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    bag: list[str],
    *,
    sizes: list[float] | None = None,
    steps: int = 3,
    gamma: float = 1.5,
    kl: float = 0.01,
    fusion: Annotated[float, Within(0, 1)] = 0.9,
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlugAndPlay:
    """Before each token, move all keys and values ``steps`` times along the gradient of log p(bag), then write.

    As the released code does: the gradient of each tensor is divided by its norm to the power ``gamma``, a KL term
    holds the distribution near the plain one, both distributions are fused by a geometric mean, and the moved keys and
    values are those that the next token reads. Greedy; texts of one batch are pushed each along its own gradient, and
    steps add up in float32. A model in bfloat16 still reads keys and values rounded to it, which swallows small steps.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: What the texts continue.
        bag: Words of the attribute, each of one token, with and without a space in front.
        sizes: Sizes of a step; 0 is always among them; by default 0.02 and 0.04.
        steps: Steps per token.
        gamma: Power of the gradient's norm that it is divided by.
        kl: Weight of the KL divergence from the plain distribution.
        fusion: Share of the pushed distribution in the geometric mean; 0 is the plain one.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts that are written at once.
        seed: Of the random words and resampling.

    Returns:
        A :class:`PlugAndPlay`.

    Raises:
        UserError: A word of several tokens, or no words; and for caches without plain keys and values.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    if not bag or steps < 0:
        raise UserError("Give a bag of one word or more, and steps of 0 or more.")
    words = bag_ids(model, bag)
    rows, bar = Prompts.of(prompts), progress or Silent()
    ids = encode(rows, model.tokenizer, model.max_positions)
    random = _random_words(model, words, seed)
    levels = sorted({0.0, *([0.02, 0.04] if sizes is None else sizes)})
    trial = _Trial(model, ids, max_new_tokens, words, Work(batch_size, JoinedProgress(bar)))
    lines, parts = [], []
    bar.start(f"pplm: {2 * len(levels) * len(ids)} texts of up to {max_new_tokens} tokens", trial.batches(len(levels)))
    for size in levels:
        push = Push(size, steps, gamma, kl, fusion)
        own, chance = trial.written(words, push), trial.written(random, push)
        lines.append({
            "size": size, **beside_control(own.shares, chance.shares, rows.clusters, seed=seed),
            "perplexity": trial.perplexity(own.ids), "mass_before": own.before, "mass_after": own.after,
        })  # fmt: skip
        texts = [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in own.ids]
        parts.append(pd.DataFrame({"size": size, "prompt": range(len(texts)), "text": texts}))
    bar.finish()
    return PlugAndPlay(
        table=with_q(lines),
        control="as many random words of the vocabulary pushed, the bag counted",
        provenance=Provenance.of(
            "pplm", model, rows, seed=seed, forward_passes=trial.forward_passes, backward_passes=trial.backward_passes,
        ),
        texts=pd.concat(parts, ignore_index=True),
        bag=[model.tokenizer.decode([int(word)]) for word in words],
        random_bag=[model.tokenizer.decode([int(token)]) for token in random],
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def bag_ids(model: AdaptedModel, bag: Sequence[str]) -> torch.Tensor:
    """The token ids of every word, with and without a space in front.

    Raises:
        UserError: A word that is several tokens.
    """
    tokens: list[int] = []
    for word in bag:
        spelt = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
        single = [ids[0] for ids in spelt if len(ids) == 1]
        if not single:
            raise UserError(
                f"The word {word!r} is {len(spelt[0])} tokens to this model; a bag holds words of one token."
            )
        tokens += single
    return torch.tensor(sorted(set(tokens)))


def _random_words(model: AdaptedModel, words: torch.Tensor, seed: int) -> torch.Tensor:
    special = set(model.tokenizer.all_special_ids)
    size = min(len(model.tokenizer), model.vocab_size)
    others = [number for number in range(size) if number not in special and number not in set(words.tolist())]
    picked = np.random.default_rng(seed).choice(len(others), size=min(len(words), len(others)), replace=False)
    return torch.tensor(sorted(others[int(index)] for index in picked))


@dataclass
class _Written:
    ids: list[list[int]]
    shares: np.ndarray
    before: float
    after: float


class _Trial:
    def __init__(self, model: AdaptedModel, ids: list[list[int]], new: int, bag: torch.Tensor, work: Work) -> None:
        self.model, self.ids, self.new, self.bag, self.work = model, ids, new, set(bag.tolist()), work
        self.forward_passes = self.backward_passes = 0

    def written(self, words: torch.Tensor, push: Push) -> _Written:
        """Every prompt's text with ``words`` pushed; the bag is counted."""
        decoding = PushedDecoding(self.model, words, push)
        ends = end_ids(self.model)
        drawn: list[list[int]] = [[] for _ in self.ids]
        report = self.work.progress or Silent()
        plan = batches([len(row) for row in self.ids], self.work.batch_size)
        report.start("pplm", len(plan))
        for rows in plan:
            texts = decoding.texts([self.ids[row] for row in rows], self.new, ends)
            for row, text in zip(rows, texts, strict=True):
                drawn[row] = text
            report.advance()
        report.finish()
        self.forward_passes += decoding.forward_passes
        self.backward_passes += decoding.backward_passes
        shares = np.array([np.mean([token in self.bag for token in row]) for row in drawn])
        mass = np.array([[step[0], step[-1]] for step in decoding.mass]) if decoding.mass else np.full((1, 2), np.nan)
        return _Written(drawn, shares, *(float(value) for value in mass.mean(0)))

    def batches(self, levels: int) -> int:
        """Batches that are written and, for their perplexity, read."""
        return 3 * levels * -(-len(self.ids) // self.work.batch_size)

    def perplexity(self, texts: list[list[int]]) -> float:
        scored_texts = logprobs(Subject("plain", self.model), self.ids, texts, self.work)
        return float(np.exp(-scored_texts.sum_.sum() / scored_texts.tokens.sum()))
