"""Writing in a style of which only samples are given: chosen among drafts, or steered (arbitrary writing styles)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import interventions as iv
from probes.attributes.text_states import text_states
from probes.call_settings import call_settings
from probes.halves import halves
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.behaviour.continuations import logprobs
from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.linguistic import profile
from workbench.behaviour.subject import Subject, Work
from workbench.behaviour.text_quality import words_in
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class StyleTransfer(ProbeResult):
    """How near to samples of a style the model writes, by each way.

    ``table``: way (plain, chosen: the draft nearest to the samples, steered STRENGTH); ``score``, the nearness of texts
    to held-out samples by counted attributes (minus the mean distance in standard deviations; higher is nearer), with
    interval; ``control``, the same for a draft chosen at random; ``states``, the cosine to the style in the model's own
    states; ``content``, the share of the plain text's rarer words that are kept; ``perplexity`` under the plain model;
    ``q`` of the difference from the control.
    """

    texts: pd.DataFrame
    """way, prompt, text."""
    layer: int
    vector: Float[Tensor, " d_model"]
    """From the mean of drafts to the mean of samples."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Writing style"
    unit: ClassVar[str] = "nearness to held-out samples"

    def recipe(self, strength: float = 1.0) -> iv.Recipe:
        """Steers towards the style."""
        return iv.Recipe([iv.Offset(self.layer, self.vector, strength=strength, positions="last+generated")])

    def figure(self) -> go.Figure:
        """Style against content kept."""
        drawn = go.Figure(
            go.Scatter(x=self.table["content"], y=self.table["score"], text=self.table["way"], mode="markers+text",
                       textposition="top center")
        )  # fmt: skip
        drawn.update_layout(title=self.title, xaxis_title="share of the content kept", yaxis_title=self.unit)
        return drawn

    def summary(self) -> str:
        """Every way."""
        said = ", ".join(
            f"{row.way} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}] (content {row.content:.0%})"
            for row in self.table.itertuples()
        )
        return f"Nearness to the style: {said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "writing-style",
    group="attributes",
    question="Can the model write in a style of which there are only samples?",
    papers=("Learning to Generate Text in Arbitrary Writing Styles",),
    cost="drafts of every prompt, then one generation per strength",
    example="--style samples.jsonl",
)
def writing_style(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    style: Annotated[Any, As("prompts")] = None,
    *,
    drafts: int = 8,
    layer: int | float | str = 0.5,
    strengths: list[float] | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> StyleTransfer:
    """Embed samples of a style by the model's own states, then choose the nearest draft, or steer towards them.

    The embedding of a text is the mean state of its tokens at ``layer``, from which the mean of the drafts is taken.
    One half of the samples gives the style, the other judges it, by attributes that are counted
    (``workbench.behaviour.linguistic``) and that neither way has seen.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: What the texts answer.
        style: Samples of the style, four or more; there is none by default, so they must be given.
        drafts: Sampled texts per prompt to choose from.
        layer: Where states are read and the offset acts: an index, or a fraction of the depth.
        strengths: Of the offset from the drafts' mean to the samples'; by default 0.5 and 1.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of drafts, the samples' halves and resampling.

    Returns:
        A :class:`StyleTransfer`.

    Raises:
        UserError: No samples, fewer than four, or fewer than two drafts.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    if style is None:
        raise UserError("Give samples of the style: texts, four or more (--style FILE).")
    if drafts < 2:
        raise UserError("Give two drafts or more: one is chosen among them.")
    (place,) = resolve_layers(layer, model.n_layers)
    rows, samples, work = Prompts.of(prompts), Prompts.of(style), Work(batch_size, progress)
    levels = [0.5, 1.0] if strengths is None else strengths
    seen, judge = halves(samples.turned(chat=False), seed)
    with counted(model) as passes:
        trial = _Trial(
            model, rows, place, Decoding(max_new_tokens, drafts, seed=seed), work, [str(label) for label in judge]
        )
        vector = trial.style(seen)
        ways: dict[str, list[Reply]] = {"plain": trial.plain, "chosen": trial.nearest(vector)}
        for strength in levels:
            ways[f"steered {strength:g}"] = trial.steered(vector, strength)
        random = trial.random(seed)
        table = trial.table(ways, random, vector, seed)
    return StyleTransfer(
        table=table,
        control="a draft of the same prompt, chosen at random",
        provenance=Provenance.of(
            "writing_style", model, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, style=samples),
        ),
        texts=pd.DataFrame([
            {"way": name, "prompt": row, "text": reply.text}
            for name, replies in ways.items() for row, reply in enumerate(replies)
        ]),
        layer=place, vector=vector, resampled=units_of(rows.clusters),
    )  # fmt: skip


class _Trial:
    """Drafts, and texts under offsets, held against the samples that judge."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, layer: int, decoding: Decoding, work: Work, judge: list[str]
    ) -> None:
        self.model, self.rows, self.layer, self.decoding, self.work = model, rows, layer, decoding, work
        self.ids = encode(rows, model.tokenizer, model.max_positions)
        drawn = generate_replies(Subject("drafts", model), rows, decoding, work)
        self.plain = [draw[0] for draw in drawn]
        self.drafts = [list(draw[1:]) for draw in drawn]
        flat = [draft for own in self.drafts for draft in own]
        before = [row for row, own in zip(self.ids, self.drafts, strict=True) for _ in own]
        self.states = self._embedded(before, [list(draft.ids) for draft in flat]).view(
            len(rows), len(self.drafts[0]), -1
        )
        self.mean = self.states.flatten(0, 1).mean(0)
        profiles = np.array([list(profile(draft.text).values()) for draft in flat])
        self.spread = profiles.std(0)
        self.goal = np.mean([list(profile(text).values()) for text in judge], axis=0)

    def _embedded(self, before: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> Tensor:
        return text_states(self.model, before, texts, [self.layer], self.work.batch_size)[:, 0]

    def style(self, samples: Prompts) -> Float[Tensor, " d_model"]:
        """From the drafts' mean to the samples'."""
        ids = encode(samples, self.model.tokenizer, self.model.max_positions)
        return self._embedded([[] for _ in ids], ids).mean(0) - self.mean

    def nearest(self, vector: Tensor) -> list[Reply]:
        """The draft of each prompt whose state lies most in the style's direction."""
        near = torch.nn.functional.cosine_similarity(self.states - self.mean, vector, dim=-1).argmax(-1)
        return [own[int(number)] for own, number in zip(self.drafts, near, strict=True)]

    def random(self, seed: int) -> list[Reply]:
        rng = np.random.default_rng(seed)
        return [own[int(rng.integers(len(own)))] for own in self.drafts]

    def steered(self, vector: Tensor, strength: float) -> list[Reply]:
        recipe = iv.Recipe([iv.Offset(self.layer, vector, strength=strength, positions="last+generated")])
        plain = Decoding(self.decoding.max_new_tokens)
        return [
            reply[0] for reply in generate_replies(Subject("steered", self.model, recipe), self.rows, plain, self.work)
        ]

    def nearness(self, replies: Sequence[Reply]) -> Float[np.ndarray, " prompt"]:
        """Minus the mean distance to the judging samples' mean profile, in standard deviations of the drafts."""
        profiles = np.array([list(profile(reply.text).values()) for reply in replies])
        used = self.spread > 0
        return -np.abs((profiles - self.goal)[:, used] / self.spread[used]).mean(1)

    def table(self, ways: dict[str, list[Reply]], random: list[Reply], vector: Tensor, seed: int) -> pd.DataFrame:
        """One line per way."""
        chance, lines = self.nearness(random), []
        for name, replies in ways.items():
            values = self.nearness(replies)
            states = self._embedded(self.ids, [list(reply.ids) for reply in replies]) - self.mean
            texts = logprobs(Subject("plain", self.model), self.ids, [reply.ids for reply in replies], self.work)
            lines.append({
                "way": name, **beside_control(values, chance, self.rows.clusters, seed=seed),
                "states": float(torch.nn.functional.cosine_similarity(states, vector, dim=-1).mean()),
                "content": float(np.mean([_kept(a.text, b.text) for a, b in zip(self.plain, replies, strict=True)])),
                "perplexity": float(np.exp(-texts.sum_.sum() / texts.tokens.sum())),
            })  # fmt: skip
        return with_q(lines)


def _kept(plain: str, text: str) -> float:
    """The share of the plain text's words of more than three letters that the text holds too; 1 without any."""
    wanted = {word for word in words_in(plain) if len(word) > 3}
    return len(wanted & set(words_in(text))) / len(wanted) if wanted else 1.0
