"""How much responses attend to the user's words, with and without the chat template, and what giving them more does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import interventions as iv
from interventions.attention_scale import eager_expected
from probes.halves import answer_scores
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import paired_p, scored, with_q
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import continuations_of
from workbench.behaviour.subject import Subject, Work
from workbench.engine.dispatch import layer_readers, on_the_cpu
from workbench.engine.sites import resolve_layers
from workbench.engine.template_tokens import TemplateTokens
from workbench.errors import UserError
from workbench.figures.intervals import whiskers
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.prompts.row import Prompt
from workbench.typing import Float, Tensor

USER, OTHERS = "content", "prompt - content"
"""Keys: the user's words, and what is the template's."""


@dataclass(frozen=True, kw_only=True)
class ContextAwareness(ProbeResult):
    """How far answers depend on the user's words.

    ``table``: model, template (on or off); ``score``, the attention from an answer's tokens to the user's words, of the
    head of the layer that pays most, with interval; ``control``, the share of the prompt's tokens that are the user's
    (what even attention would pay); ``q`` of the tuned model's difference from the base (1 for the base).
    """

    steering: pd.DataFrame
    """model, template, alpha, score (log-probability of the answer per token), low, high, gain, control (the gain when
    the user's own words are turned down as much)."""
    rows: pd.DataFrame
    """model, template, prompt, dependency, dependent (above the threshold)."""
    layer: int
    resampled: str = "prompts"

    title: ClassVar[str] = "Context awareness"
    unit: ClassVar[str] = "attention to the user's words"

    def figure(self) -> go.Figure:
        """Attention to the user's words, by model and template."""
        names = [f"{row.model}, template {row.template}" for row in self.table.itertuples()]
        drawn = go.Figure(
            go.Bar(
                x=names, y=self.table["score"],
                error_y=whiskers(self.table),
            )
        )  # fmt: skip
        drawn.update_layout(title=self.title, yaxis_title=self.unit)
        return drawn

    def summary(self) -> str:
        """Scores, and the best gain of steering."""
        said = ", ".join(
            f"{row.model} (template {row.template}) {row.score:.2f} [{row.low:.2f}, {row.high:.2f}]"
            for row in self.table.itertuples()
        )
        best = self.steering.iloc[int(self.steering["gain"].to_numpy().argmax())]
        return (
            f"Attention to the user's words at L{self.layer}: {said}; alpha {best['alpha']:g} on the rest gains "
            f"{best['gain']:+.3f} nats per token at best (on the user's words {best['control']:+.3f}); intervals over "
            f"{self.resampled}; control: {self.control}"
        )


@method(
    "context-awareness",
    group="attention",
    question="Did tuning, or its chat template, draw attention away from the user's words?",
    papers=("On the Loss of Context-awareness in General Instruction Fine-tuning",),
    needs=Needs(columns=("answer",)),
    cost="two passes per model and template, then two per alpha",
    example="--alphas 0.9",
)
def context_awareness(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layer: int | float | str = 0.5,
    alphas: list[float] | None = None,
    threshold: Annotated[float, Within(0, 1)] = 0.6,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ContextAwareness:
    """Measure how much answers attend to the user's words, for both models, with the chat template on and off.

    The context-dependency score of a row is the attention from its answer's tokens to the user's words, averaged over
    the answer, of the head of ``layer`` that pays most. User-span steering then multiplies the attention to all other
    prompt tokens (template, special tokens) by alpha in all heads and layers, which leaves more for the user's words.
    Without a chat template only the special tokens are others.

    Args:
        pair: Both models.
        prompts: Questions that hold their context, with answers.
        layer: Where attention is read: an index, or a fraction of the depth.
        alphas: Factors of steering; by default 0.95 and 0.9.
        threshold: Rows above it are context-dependent.
        seed: Of resampling and tests.

    Returns:
        A :class:`ContextAwareness`. A base with itself differs nowhere.

    Raises:
        UserError: Rows without answers, an alpha of 0 or less, or a layer without heads.
    """
    check_pair(pair, prompts)
    (place,) = resolve_layers(layer, pair.tuned.n_layers)
    factors = [0.95, 0.9] if alphas is None else alphas
    if not factors or not all(0 < factor for factor in factors):
        raise UserError("Alphas are factors above 0, such as 0.9: 1 changes nothing.")
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    versions = {"on": rows, "off": _as_text(rows)} if pair.tuned.has_chat_template else {"off": rows}
    attention, lines, parts = {}, [], []
    with eager_expected(), counted(pair.base, pair.tuned) as passes:
        for template, own in versions.items():
            for role, model in pair.models.items():
                attention[role, template] = dependency(model, own, place)
                scores = attention[role, template][0]
                parts.append(pd.DataFrame({
                    "model": role, "template": template, "prompt": range(len(scores)), "dependency": scores,
                    "dependent": scores > threshold,
                }))  # fmt: skip
                lines += _steered(model, role, template, own, factors, work, seed)
    return ContextAwareness(
        table=_table(attention, rows, seed),
        control="even attention to all tokens of the prompt; for steering, the user's own words turned down as much",
        provenance=Provenance.of("context_awareness", pair, rows, seed=seed, forward_passes=passes.forward),
        steering=pd.DataFrame(lines), rows=pd.concat(parts, ignore_index=True), layer=place,
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def _as_text(rows: Prompts) -> Prompts:
    """The same without the chat template: what the user said, read as it is."""

    def plain(row: Prompt) -> Prompt:
        if row.messages is None:
            return row
        text = "\n".join(str(turn["content"]) for turn in row.messages if turn["role"] == "user")
        return replace(row, prompt=text, messages=None, contrast=None)

    return Prompts([plain(row) for row in rows]).turned(chat=False)


def dependency(
    model: AdaptedModel, rows: Prompts, layer: int
) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
    """(attention of each answer to the user's words, share of the prompt's tokens that are the user's)."""
    template = TemplateTokens(model.tokenizer)
    ids = encode(rows, model.tokenizer, model.max_positions)
    answers = continuations_of(rows, Subject("dependency", model), "answer")
    scores, even = [], []
    for row, answer in zip(ids, answers, strict=True):
        user = torch.from_numpy(np.asarray(template.content(row), dtype=bool))
        seen: dict[int, Tensor] = {}
        with model.hooked(layer_readers("pattern", [layer], seen, on_the_cpu)):
            model.forward(torch.tensor([[*row, *answer]]), logits=None)
        paid = seen[layer][0][:, len(row) - 1 : -1, : len(row)][..., user].sum(-1)  # the queries that write the answer
        scores.append(float(paid.max(0).values.mean()))
        even.append(float(user.float().mean()))
    return np.array(scores), np.array(even)


def _steered(
    model: AdaptedModel, role: str, template: str, rows: Prompts, alphas: Sequence[float], work: Work, seed: int
) -> list[dict[str, Any]]:
    plain = answer_scores(Subject(role, model), rows, work)
    lines = []
    for alpha in alphas:
        own, other = (
            answer_scores(Subject(role, model, iv.Recipe([iv.AttentionScale(alpha, keys=keys)])), rows, work)
            for keys in (OTHERS, USER)
        )
        lines.append({
            "model": role, "template": template, "alpha": alpha,
            **scored(own, seed=seed, clusters=rows.clusters), "gain": (own - plain).mean(),
            "control": (other - plain).mean(),
        })  # fmt: skip
    return lines


def _table(attention: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]], rows: Prompts, seed: int) -> pd.DataFrame:
    lines = []
    for (role, template), (scores, even) in attention.items():
        lines.append({
            "model": role, "template": template, **scored(scores, seed=seed, clusters=rows.clusters),
            "control": even.mean(), "p": paired_p(scores - attention["base", template][0], rows.clusters, seed=seed),
        })  # fmt: skip
    return with_q(lines)
