"""The causal test: needles found with the best retrieval heads masked, beside random heads masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.call_settings import call_settings
from probes.matching import Place, matched_cells
from probes.needles.decoding import answer, check_room, recall
from probes.needles.heads import RetrievalHeads
from probes.needles.trials import Trial, contents
from probes.results import SHARED, ProbeResult, Provenance
from probes.scored import count_columns
from workbench.argument_checks import read_options
from workbench.engine.context import ForwardContext
from workbench.engine.dispatch import SiteHook, layer_readers
from workbench.engine.sites import Site, parse_label
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor

Mask = Literal["zero", "uniform", "mean"]
MASKS: tuple[str, ...] = ("zero", "uniform", "mean")


@dataclass(frozen=True)
class MaskOptions:
    """Options of :func:`mask_heads`."""

    how: Mask = "zero"
    """z becomes 0, or its mean over the prompt; or attention becomes uniform over the past (never the future)."""
    max_new_tokens: int = 50
    controls: int = 10
    """Draws of random heads, each fixed for the whole curve."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class MaskTest(ProbeResult):
    """Mean recall of the needle with the ``count`` best heads masked in prefill and decoding (score, low, high), beside
    as many random heads of the same layers (control, control_low, control_high)."""

    heads: list[str]
    how: str
    title: ClassVar[str] = "Masked retrieval heads"
    unit: ClassVar[str] = "recall of the needle"

    def frame(self) -> pd.DataFrame:
        """The table, best score first. Its cells are counts, so there is no layer column."""
        return super().frame()[["count", *SHARED, "control_low", "control_high"]]

    def figure(self) -> go.Figure:
        """Recall against the number of masked heads."""
        from workbench.figures.experts import count_lines

        return count_lines(
            self.table, title=f"Heads masked ({self.how})", x="heads masked", y=self.unit, control="random heads"
        )


def mask_heads(
    subject: Any,
    trials: Sequence[Trial],
    heads: RetrievalHeads | Sequence[str],
    counts: Sequence[int] = (1, 2, 4, 8),
    **options: Any,
) -> MaskTest:
    """Answer the trials with the first n of ``heads`` masked, for every n of ``counts``.

    ``subject``: a model or a pair (its tuned model). ``options``: see :class:`MaskOptions`.
    """
    settings = read_options(MaskOptions, options)
    if settings.how not in MASKS:
        raise unknown_name("way to mask a head", settings.how, MASKS)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    names = _ranked(heads)
    steps = sorted({0, *counts})
    if steps[-1] > len(names):
        raise UserError(f"The counts ask for {steps[-1]} heads but {len(names)} are ranked.")
    ranked = [parse_label(name)[::2] for name in names[: steps[-1]]]
    best: list[Place] = [(layer, int(head or 0)) for layer, head in ranked]
    everything = {(layer, head): 0.0 for layer in range(model.n_layers) for head in range(model.n_heads)}
    random = matched_cells(best, everything, settings.controls, settings.seed, nearest=len(everything))
    check_room(model, trials, settings.max_new_tokens)
    trial = _Trial(model, trials, settings)
    values = np.stack([trial.recalls(best[:n]) for n in steps])
    drawn = np.stack([np.stack([values[0], *(trial.recalls(draw[:n]) for n in steps[1:])]) for draw in random])
    return MaskTest(
        table=_table(steps, values, drawn, np.array([trial.group for trial in trials]), settings),
        control=f"{settings.controls} draws of as many random heads of the same layers",
        provenance=Provenance.of(
            "mask_heads", model, contents(trials), seed=settings.seed, forward_passes=trial.passes,
            settings=call_settings(settings, heads=names[: steps[-1]], counts=counts),
        ),
        heads=names[: steps[-1]],
        how=settings.how,
    )  # fmt: skip


def _ranked(heads: RetrievalHeads | Sequence[str]) -> list[str]:
    if not isinstance(heads, RetrievalHeads):
        return list(heads)
    table = heads.frame()
    return [f"L{int(layer)}H{int(head)}" for layer, head in zip(table["layer"], table["head"], strict=True)]


class _Trial:
    """Needle trials answered with some heads masked."""

    def __init__(self, model: AdaptedModel, trials: Sequence[Trial], settings: MaskOptions) -> None:
        self.model, self.trials, self.settings, self.passes = model, trials, settings, 0

    def recalls(self, heads: Sequence[Place]) -> Float[np.ndarray, " trial"]:
        """Recall of each trial's needle."""
        recalls = []
        for trial in self.trials:
            hooks = mask_hooks(self.model, heads, self.settings.how, trial)
            reply = answer(self.model, trial, self.settings.max_new_tokens, watch=False, hooks=hooks)
            self.passes += reply.passes
            recalls.append(recall(self.model, trial, reply.outputs))
        return np.array(recalls)


def mask_hooks(model: AdaptedModel, heads: Sequence[Place], how: str, trial: Trial) -> list[SiteHook]:
    """Edits that mask ``heads`` at every position of ``trial``."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    means = _means(model, by_layer, trial) if how == "mean" else {}
    if how == "uniform":
        return [
            SiteHook(Site("pattern", layer), _uniform(own_heads), edit=True) for layer, own_heads in by_layer.items()
        ]
    return [
        SiteHook(Site("z", layer), _fixed(own_heads, means.get(layer)), edit=True)
        for layer, own_heads in by_layer.items()
    ]


def _fixed(heads: list[int], means: Tensor | None) -> Callable[[Tensor, ForwardContext], Tensor]:
    def edit(value: Tensor, _ctx: ForwardContext) -> Tensor:
        new = value.clone()
        new[:, :, heads] = 0 if means is None else means[heads].to(new)
        return new

    return edit


def _uniform(heads: list[int]) -> Callable[[Tensor, ForwardContext], Tensor]:
    def edit(value: Tensor, _ctx: ForwardContext) -> Tensor:
        queries, keys = value.shape[-2:]
        past = torch.ones(queries, keys, dtype=torch.bool, device=value.device).tril(keys - queries)
        new = value.clone()
        new[:, heads] = (past / past.sum(-1, keepdim=True)).to(new.dtype)
        return new

    return edit


def _means(model: AdaptedModel, by_layer: dict[int, list[int]], trial: Trial) -> dict[int, Tensor]:
    """Mean z [head, d_head] of each layer over the prompt."""
    means: dict[int, Tensor] = {}
    with model.hooked(layer_readers("z", by_layer, means, lambda value: value[0].mean(0)), stop=True):
        if by_layer:
            model.forward(torch.tensor([trial.ids]), logits=None)
    return means


def _table(
    steps: Sequence[int],
    values: Float[np.ndarray, "count trial"],
    drawn: Float[np.ndarray, "draw count trial"],
    groups: np.ndarray,
    settings: MaskOptions,
) -> pd.DataFrame:
    clusters = groups if len(set(groups)) > 1 else np.arange(len(groups))
    return pd.DataFrame(count_columns(steps, values, drawn, clusters, seed=settings.seed)).drop(columns="p")
