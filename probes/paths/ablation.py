"""A model some of whose heads say something else at chosen positions: their mean there, or what another model's say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from probes.patches.metrics import Metric, check_metric
from probes.patches.runs import record
from probes.paths.places import Head, Place, offsets_of
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import unknown_name
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts import Prompts
from workbench.prompts.answers import answer_tokens
from workbench.prompts.encode import Encoded, encode, pad_left
from workbench.typing import Float, Int, Tensor

METRICS = ("accuracy", "prob", "logit_diff")
EVERYWHERE = "all"
Part = tuple[Place, Head]
"""A head at a place."""


@dataclass(frozen=True)
class Kept:
    """What keeps its own output: nothing but ``parts``, or everything but ``parts``."""

    parts: frozenset[Part]
    everything_else: bool = False


@runtime_checkable
class StandIn(Protocol):
    """What a head says instead of its own output."""

    passes: float
    """Forward passes spent so far."""

    def of(self, layer: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "_ pos head d_head"]:
        """z of ``layer`` for some prompts, or one for all of them."""


class Mean:
    """The mean of z over reference prompts: at each position, or over all tokens but the first where lengths differ."""

    def __init__(self, model: AdaptedModel, batch: Encoded, batch_size: int, *, by_position: bool) -> None:
        self.passes = 0.0
        total, count = torch.zeros(()), torch.zeros(())
        sites = [Site("z", layer) for layer in range(model.n_layers)]
        for first in range(0, len(batch), batch_size):
            part = _rows(batch, slice(first, first + batch_size)).to(model.device)
            values, _ = record(model, part, sites)
            counted = torch.ones_like(part.attention_mask).bool() if by_position else part.position_ids > 0
            weight = counted[..., None, None].double()
            axes = (0,) if by_position else (0, 1)
            total = total + torch.stack([(values[site].double() * weight).sum(axes).cpu() for site in sites])
            count = count + weight.sum(axes).cpu()
            self.passes += 1
        mean = (total / count).to(model.device, model.dtype)
        self._mean = mean if by_position else mean[:, None]

    def of(self, layer: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "_ pos head d_head"]:  # noqa: ARG002
        return self._mean[layer][None]


class Same:
    """What another model's heads say on the same prompts."""

    def __init__(self, model: AdaptedModel, batch: Encoded) -> None:
        self.passes = 0.0
        self._model, self._batch = model, batch
        self._numbers: list[int] = []
        self._values: dict[Site, Tensor] = {}

    def of(self, layer: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "_ pos head d_head"]:
        if self._numbers != rows.tolist():  # the prompts of one batch are asked for layer by layer, circuit by circuit
            sites = [Site("z", number) for number in range(self._model.n_layers)]
            self._values, _ = record(self._model, _rows(self._batch, rows).to(self._model.device), sites)
            self._numbers = rows.tolist()
            self.passes += 1
        return self._values[Site("z", layer)]


class HeadRuns:
    """One model and prompts, padded on the left, run with whatever is kept.

    ``spare_first``: heads keep their own output at each prompt's first token, an attention sink without a mean of its
    own where lengths differ.
    """

    def __init__(
        self, model: AdaptedModel, prompts: Prompts, stand_in: StandIn, metric: str, *, batch_size: int = 16,
        max_tokens: int | None = None, progress: Progress | None = None, spare_first: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.batch_size = model, prompts, batch_size
        self.metric, self.stand_in = metric, stand_in
        self._passes = 0.0
        self.at_once = max_tokens or (512 if model.device.type == "cpu" else 16_384)
        self.report = progress or Silent()
        self._batch = padded_prompts(prompts, model)
        self._spare_first = spare_first
        self._answers = self._tokens_of(prompts, metric)
        self._places: dict[Place, Int[Tensor, " prompt"]] = {}

    @property
    def passes(self) -> float:
        """Forward passes in units of one batch."""
        return self._passes + self.stand_in.passes

    def scores(self, variants: Sequence[Kept]) -> Float[np.ndarray, "prompt kept"]:
        """The metric of every prompt, for each of ``variants``."""
        scores = np.zeros((len(self._batch), len(variants)))
        self.report.start("Heads replaced", len(self._batch))
        width = max(1, self.at_once // (min(self.batch_size, len(self._batch)) * self._batch.input_ids.shape[1]))
        for first in range(0, len(self._batch), self.batch_size):
            rows = torch.arange(first, min(first + self.batch_size, len(self._batch)))
            for start in range(0, len(variants), width):
                some = variants[start : start + width]
                scores[first : first + len(rows), start : start + len(some)] = self._run(rows, some)
                self._passes += len(some)
            self.report.advance(len(rows))
        self.report.finish()
        return scores

    def _run(self, rows: Int[Tensor, " row"], variants: Sequence[Kept]) -> Float[np.ndarray, "row kept"]:
        few = _rows(self._batch, rows).to(self.model.device)
        batch = Encoded(*(tensor.repeat_interleave(len(variants), 0) for tensor in (few.input_ids, few.attention_mask)))
        hooks = [
            SiteHook(Site("z", layer), self._edit(layer, rows, variants), edit=True)
            for layer in self._touched(variants)
        ]
        with self.model.hooked(hooks), torch.no_grad():
            logits = self.model.forward(batch, logits="last")
        assert logits is not None
        logits = logits[:, -1].unflatten(0, (-1, len(variants)))
        answers, distractors = self._answers
        if self.metric == "accuracy":
            return (logits.argmax(-1).cpu() == answers[rows][:, None]).double().numpy()
        others = None if distractors is None else distractors[rows]
        return Metric(self.metric, answers[rows], others)(logits).double().cpu().numpy()

    def _touched(self, variants: Sequence[Kept]) -> list[int]:
        """Layers in which anything is ablated."""
        if not all(variant.everything_else for variant in variants):
            return list(range(self.model.n_layers))
        return sorted({layer for variant in variants for _, (layer, _) in variant.parts})

    def _edit(
        self, layer: int, rows: Int[Tensor, " row"], variants: Sequence[Kept]
    ) -> Callable[[Tensor, ForwardContext], Tensor]:
        own = torch.zeros(
            len(rows), len(variants), self._batch.input_ids.shape[1], self.model.n_heads, dtype=torch.bool
        )
        for copy, ablated in enumerate(variants):
            own[:, copy] = ablated.everything_else
            for place, (at_layer, head) in ablated.parts:
                if at_layer == layer:
                    self._mark(own[:, copy, :, head], place, rows, value=not ablated.everything_else)
        if self._spare_first and not all(variant.everything_else for variant in variants):
            first = _rows(self._batch, rows).position_ids == 0
            own |= (first & _rows(self._batch, rows).attention_mask.bool())[:, None, :, None]
        own = own.flatten(0, 1)[..., None].to(self.model.device)
        other = self.stand_in.of(layer, rows)
        other = other if len(other) == 1 else other.repeat_interleave(len(variants), 0)
        return lambda value, _ctx: torch.where(own.to(value.device), value, other.to(value))

    def _mark(self, own: Tensor, place: Place, rows: Int[Tensor, " row"], *, value: bool) -> None:
        """``own`` [row, pos] becomes ``value`` at the place of each row."""
        if place == EVERYWHERE:
            own[:] = value
            return
        if place not in self._places:
            lengths = self._batch.lengths.tolist()
            self._places[place] = torch.tensor(offsets_of(place, self.prompts, lengths))
        own[torch.arange(len(rows)), self._places[place][rows]] = value

    def _tokens_of(self, prompts: Prompts, metric: str) -> tuple[Tensor, Tensor | None]:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        has = [all(getattr(row, name) for row in prompts) for name in ("answer", "distractor")]
        check_metric(
            "logit_diff" if metric == "logit_diff" else "prob", has_answers=has[0], has_distractors=has[1]
        )  # fmt: skip
        tokens = answer_tokens(prompts, self.model.tokenizer)
        return tokens.answer, tokens.distractor


def mean_ablation(
    model: AdaptedModel, prompts: Prompts, reference: Prompts, metric: str, *, batch_size: int = 16, **options: Any
) -> HeadRuns:
    """Heads that are not kept say their mean over ``reference``.

    Where prompts and reference have one length, the mean is taken at each position. Otherwise a position means other
    words in other rows: the mean is over all tokens but each prompt's first, where heads keep their own output.
    """
    both = [padded_prompts(rows, model) for rows in (prompts, reference)]
    one_length = len({int(length) for batch in both for length in batch.lengths}) == 1
    stand_in = Mean(model, both[1], batch_size, by_position=one_length)
    return HeadRuns(model, prompts, stand_in, metric, batch_size=batch_size, spare_first=not one_length, **options)


def padded_prompts(prompts: Prompts, model: AdaptedModel) -> Encoded:
    """Token ids of prompts, padded on the left, on the CPU."""
    padding = 0 if model.tokenizer is None else pad_id(model.tokenizer)
    return pad_left(encode(prompts, model.tokenizer, model.max_positions), padding)


def _rows(batch: Encoded, rows: slice | Int[Tensor, " row"]) -> Encoded:
    return Encoded(batch.input_ids[rows], batch.attention_mask[rows])
