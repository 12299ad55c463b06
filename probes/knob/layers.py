"""Which attention layers carry something to the last token: the layer search of the context-knob paper.

The search is over intervals of layers whose attention heads are patched together, with its edge cases mended:
both ends are evaluated, a bound is only believed once it was run, and the refinement ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from probes.knob.intents import IntentPairs, partners
from probes.replay import LastToken, read_out
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.typing import Float, Int, Tensor

Layers = frozenset[int]


@dataclass(frozen=True)
class Curves:
    """Mean probability of the source's and of the target's answer, read out after each layer."""

    source: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Thresholds:
    """``reached``: the source answer's probability that counts as carried over; ``margin``: by how much it must
    win at the last layer; ``drop``: a fall from one layer to the next that shows the layer writes over it."""

    reached: float = 0.85
    margin: float = 0.2
    drop: float = 0.05


@dataclass(frozen=True)
class LayerSearch:
    """``layers`` is empty when patching the attention of all layers does not carry the answer over."""

    layers: tuple[int, ...]
    steps: tuple[tuple[tuple[int, ...], float], ...]
    """Every set that was run, in order, with the highest probability of the source answer."""
    monotone: bool | None = None
    """Whether more layers never helped less, over all first parts [0, u); None when that was not checked."""


@dataclass
class _Runs:
    curves: Callable[[Layers], Curves]
    thresholds: Thresholds
    seen: dict[Layers, Curves] = field(default_factory=dict)

    def __call__(self, layers: Layers) -> Curves:
        if layers not in self.seen:
            self.seen[layers] = self.curves(layers)
        return self.seen[layers]

    def reaches(self, first: int, end: int) -> bool:
        return bool(self(frozenset(range(first, end))).source.max() > self.thresholds.reached)


def search_layers(
    curves: Callable[[Layers], Curves],
    n_layers: int,
    thresholds: Thresholds | None = None,
    *,
    check_monotone: bool = False,
) -> LayerSearch:
    """The smallest interval of layers that carries the source's answer over, and late layers that write over it.

    1. the smallest u for which patching [0, u) reaches the threshold, by bisection; 2. the largest first layer
    for which [first, u) still does; 3. while the source's answer does not win at the last layer, the next later
    layer at which its probability drops. At most ``2 log2(n_layers) + n_layers`` sets are run, each once.
    """
    limits = thresholds or Thresholds()
    run = _Runs(curves, limits)
    if not run.reaches(0, n_layers):
        return LayerSearch((), _steps(run), _monotone(run, n_layers) if check_monotone else None)
    end = _bisect(lambda u: run.reaches(0, u), low=0, high=n_layers)
    first = -_bisect(lambda negative: run.reaches(-negative, end), low=-end, high=0)
    layers = _refine(run, frozenset(range(first, end)), n_layers)
    return LayerSearch(tuple(sorted(layers)), _steps(run), _monotone(run, n_layers) if check_monotone else None)


def _bisect(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number for which ``holds``, known to hold at ``high`` and taken not to hold at ``low``."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _refine(run: _Runs, layers: Layers, n_layers: int) -> Layers:
    for _ in range(n_layers):
        result = run(layers)
        if result.source[-1] > result.target[-1] + run.thresholds.margin:
            break
        later = range(max(layers) + 1, n_layers)
        falls = [i for i in later if result.source[i - 1] - result.source[i] > run.thresholds.drop]
        if not falls:
            break
        layers = layers | {falls[0]}
    run(layers)
    return layers


def _monotone(run: _Runs, n_layers: int) -> bool:
    tops = [run(frozenset(range(u))).source.max() for u in range(1, n_layers + 1)]
    return bool(np.all(np.diff(tops) > -run.thresholds.drop))


def _steps(run: _Runs) -> tuple[tuple[tuple[int, ...], float], ...]:
    return tuple((tuple(sorted(layers)), float(score.source.max())) for layers, score in run.seen.items())


class PatchedHeads:
    """Curves of patching z of all heads, at the last token, from each row's partner, read with the logit lens.

    ``targets``: the target rows averaged over (one direction of the intent).
    """

    def __init__(self, last: LastToken, pairs: IntentPairs, targets: Int[Tensor, " target"]) -> None:
        self.last, self.pairs, self.target_rows = last, pairs, targets
        model = last.model
        shape = (model.n_layers, len(pairs.answers), model.n_heads, model.d_head)
        self.heads = torch.empty(shape, dtype=model.dtype)
        last.all_run(lambda rows: [self._keep(layer, rows) for layer in range(model.n_layers)])

    def _keep(self, layer: int, rows: Int[Tensor, " batch"]) -> SiteHook:
        def keep(value: Tensor, _ctx: object) -> None:
            self.heads[layer, rows] = value[:, -1].detach().to("cpu")

        return SiteHook(Site("z", layer), keep)

    def __call__(self, layers: Layers) -> Curves:
        model = self.last.model
        ends = torch.empty_like(self.last.ends)
        sources = partners(len(self.pairs.answers))

        def hooks(rows: Int[Tensor, " batch"]) -> list[SiteHook]:
            patches = [self._patch(layer, sources[rows]) for layer in sorted(layers)]
            return [*patches, *(_reader(ends, layer, rows) for layer in range(model.n_layers))]

        self.last.all_run(hooks)
        answers, wanted = self.pairs.answers[self.target_rows], self.pairs.wanted[self.target_rows]
        source, target = [], []
        for layer in range(model.n_layers):
            says = read_out(model, ends[layer, self.target_rows]).float().softmax(-1).cpu()
            source.append(_mean_probability(says, wanted))
            target.append(_mean_probability(says, answers))
        return Curves(np.array(source), np.array(target))

    def _patch(self, layer: int, sources: Int[Tensor, " batch"]) -> SiteHook:
        def put(value: Tensor, _ctx: object) -> Tensor:
            return self.heads[layer, sources][:, None].to(value)

        return SiteHook(Site("z", layer), put, edit=True)


def _reader(ends: Tensor, layer: int, rows: Int[Tensor, " batch"]) -> SiteHook:
    def read(value: Tensor, _ctx: object) -> None:
        ends[layer, rows] = value[:, -1].detach().to("cpu")

    return SiteHook(Site("resid_post", layer), read)


def _mean_probability(says: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"]) -> float:
    return says.gather(1, tokens[:, None]).mean().item()
