"""Which heads look, at the last token, at a place of each prompt's own: a known algorithm's target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.replay import counted
from probes.resampling import cluster_means
from probes.results import ProbeResult, Provenance
from probes.row_spans import row_spans
from workbench.argument_checks import check_pair
from workbench.engine.dispatch import layer_readers, on_the_cpu
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.figures.heads import head_heatmap
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, encode, pad_left
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Tensor

Attention = Float[np.ndarray, "prompt head"]


@dataclass(frozen=True, kw_only=True)
class TargetAttention(ProbeResult):
    """How much each head's last token looks at the row's target.

    ``table``: layer, head; ``score``, the tuned model's attention to the target, with interval; ``control``, to as many
    other tokens of the prompt drawn at random, ``q`` of the difference; ``base``, the base's, and ``change`` with
    ``change_q``, tested over prompts. ``top``: share of prompts in which the target is what the head looks at most.
    """

    heading: str

    title: ClassVar[str] = "Attention to a target"
    unit: ClassVar[str] = "attention of the last token"

    def figure(self) -> go.Figure:
        """Layer by head."""
        return head_heatmap(self.table, title=self.heading, score=self.unit)

    def summary(self) -> str:
        """The head that looks there most, and whether tuning made it."""
        best = self.frame().iloc[0]
        return (
            f"L{best['layer']:.0f}H{best['head']:.0f} looks at the target most: {best['score']:.2f} "
            f"[{best['low']:.2f}, {best['high']:.2f}] (base {best['base']:.2f}, control {best['control']:.2f}, q = "
            f"{best['q']:.2g}); it is what the head looks at most in {best['top']:.0%} of the prompts. "
            f"{int((self.table['change_q'] < 0.05).sum())} heads changed. Control: {self.control}."
        )


@method(
    "target-attention",
    group="attention",
    question="Which heads look at the place that a known algorithm would look at, and did tuning make them?",
    papers=("Improving Length-Generalization in Transformers via Task Hinting",),
    cost="one pass of each model per prompt, attention written out",
    example="--target instruction",
    any_adapter="whether heads of the tuned model look at the target more than elsewhere, whatever made them",
)
def target_attention(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    target: str = "target",
    layers: Any = None,
    draws: int = 20,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> TargetAttention:
    """Attention of the last token to each row's own target, for every head of both models.

    The target is where a documented algorithm looks: to sort by successors, the list's next larger number. Held against
    random places of the prompt it tells which heads follow the algorithm; between two models (trained with and without
    a hint task, say) it tells what made them.

    Args:
        pair: Both models.
        prompts: Rows that name their target.
        target: A column with a text of the prompt or two numbers (characters from and to), or ``role:user``.
        layers: Layers: indices or fractions of depth; by default all.
        draws: Random places per prompt, the control.
        seed: Of random places and intervals.

    Returns:
        A :class:`TargetAttention`.

    Raises:
        UserError: A row has no target, or it does not stand in the prompt.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if draws < 1:
        raise UserError("The control are random places: give draws of 1 or more.")
    spans = row_spans(rows, pair.tokenizer, target)
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    random = np.random.default_rng(seed)
    places = [[_elsewhere(span, len(own), random) for _ in range(draws)] for span, own in zip(spans, ids, strict=True)]
    numbers = resolve_layers(layers, pair.tuned.n_layers)
    bar = progress or Silent()
    bar.start("attention to targets", 2)
    read: dict[str, _Read] = {}
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            read[role] = _read(pair.models[role], ids, spans, places, numbers, batch_size)
            bar.advance()
    bar.finish()
    return TargetAttention(
        table=_table(read, numbers, rows.clusters, seed),
        control=f"{draws} random places of as many tokens in the same prompt",
        provenance=Provenance.of("target_attention", pair, rows, seed=seed, forward_passes=passes.forward),
        heading=f"Attention to {target}",
    )  # fmt: skip


@dataclass(frozen=True)
class _Read:
    """Of one model, layers and heads flattened."""

    target: Attention
    control: Attention
    top: Attention


def _elsewhere(span: tuple[int, int], length: int, random: np.random.Generator) -> tuple[int, int]:
    """A span of the same length that does not touch the target; the target itself where there is no room."""
    width = span[1] - span[0]
    starts = [number for number in range(length - width + 1) if number + width <= span[0] or number >= span[1]]
    start = int(random.choice(starts)) if starts else span[0]
    return start, start + width


def _read(
    model: AdaptedModel, ids: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]],
    places: Sequence[Sequence[tuple[int, int]]], layers: Sequence[int], batch_size: int,
) -> _Read:  # fmt: skip
    shape = (len(ids), len(layers), model.n_heads)
    target, control, top = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for rows in batches([len(tokens) for tokens in ids], batch_size):
        held: dict[int, Tensor] = {}
        with model.hooked(layer_readers("pattern", layers, held, lambda value: on_the_cpu(value[:, :, -1]))):
            model.forward(pad_left([ids[row] for row in rows], pad_id(model.tokenizer)), logits=None)
        for place, layer in enumerate(layers):
            for number, row in enumerate(rows):
                seen = held[layer][number, :, -len(ids[row]) :].numpy()
                first, last = spans[row]
                target[row, place] = seen[:, first:last].sum(-1)
                control[row, place] = np.mean([seen[:, start:other].sum(-1) for start, other in places[row]], axis=0)
                most = seen.argmax(-1)
                top[row, place] = (most >= first) & (most < last)
    return _Read(*(values.reshape(len(ids), -1) for values in (target, control, top)))


def _table(read: dict[str, _Read], layers: Sequence[int], clusters: np.ndarray, seed: int) -> pd.DataFrame:
    tuned, base = read["tuned"], read["base"]
    intervals = mean_intervals(tuned.target, clusters=clusters, seed=seed)
    beyond, change = (
        paired_permutation(cluster_means(difference, clusters), seed=seed).p
        for difference in (tuned.target - tuned.control, tuned.target - base.target)
    )
    heads = tuned.target.shape[1] // len(layers)
    return pd.DataFrame({
        "layer": np.repeat(list(layers), heads), "head": np.tile(np.arange(heads), len(layers)),
        "score": intervals.estimate, "low": intervals.low, "high": intervals.high, "control": tuned.control.mean(0),
        "q": q_values(beyond), "base": base.target.mean(0), "change": (tuned.target - base.target).mean(0),
        "change_q": q_values(change), "top": tuned.top.mean(0),
    })  # fmt: skip
