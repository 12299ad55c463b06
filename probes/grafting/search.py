"""Finding the region: by movement, by first-order effect, by the paper's optimised mask, by adaptive steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from probes.grafting.blend import Blender
from probes.grafting.packing import Packed
from probes.grafting.ranking import highest
from probes.grafting.regions import Region
from probes.grafting.slopes import Slopes
from probes.grafting.tasks import Task, grafted_outcome
from probes.grafting.units import Units
from workbench.errors import UserError
from workbench.progress import Progress, Silent, tracked
from workbench.typing import Tensor

Method = Literal["optimised", "adaptive", "movement", "first_order"]
_FIRST_STEP = 10.0
"""The strongest unit's first step, in offsets: it must cross, and what is left for the others shrinks as it does."""
METHODS: tuple[Method, ...] = ("optimised", "adaptive", "movement", "first_order")


@dataclass(frozen=True)
class Settings:
    """How the mask is optimised.

    ``start``: "movement" begins with the ``sparsity`` share of entries that moved most, "empty" with none.
    ``offset`` b: gamma begins at sigmoid(-b) or sigmoid(b), S ~ U[0, 1) away (None: 10 as in the paper, 3 for the
    adaptive rule). ``lr`` None: scaled to the first gradient for the paper's rule, 0.5 logits per step for the
    adaptive one. ``penalty``: the adaptive rule's price of a unit, as a share of the strongest unit's first effect.
    ``sparsities``: sizes of the curve. ``draws``: random masks per size. ``batch_size``: prompts per forward pass.
    """

    sparsity: float = 1e-3
    epochs: int = 30
    start: Literal["movement", "empty"] = "movement"
    """Begin with the entries that moved most, or with none."""
    offset: float | None = None
    """How far the mask begins from undecided: gamma at sigmoid of this."""
    lr: float | None = None
    penalty: float = 0.03
    """The adaptive rule's price of a unit, as a share of the strongest one's first effect."""
    sparsities: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 2e-2, 5e-2, 1e-1, 1.0)
    """Sizes of the curve."""
    draws: int = 10
    batch_size: int = 32
    seed: int = 0


@dataclass
class Found:
    """``packed``: the region found. ``ranking``: a number per unit that orders all of them."""

    packed: dict[str, Packed]
    ranking: Units
    forward_passes: int = 0
    backward_passes: int = 0
    history: tuple[tuple[float, int], ...] = ()
    """Per epoch: accuracy of the rounded mask on the task, and its number of entries."""

    @property
    def mask(self) -> dict[str, Tensor]:
        """The region found, made anew: a quarter of the weights."""
        return {name: bits.mask() for name, bits in self.packed.items()}

    def pop_ranking(self) -> Units:
        """Hand the ranking, which is as large as the weights, to the only one who still needs it."""
        ranking = self.ranking
        del self.ranking
        return ranking


def search(blender: Blender, task: Task, method: Method, settings: Settings, progress: Progress | None = None) -> Found:
    """Find the region with ``method``; the task is what the mask is fitted (and chosen) on."""
    watch = progress or Silent()
    budget = max(1, round(settings.sparsity * blender.region.n_entries))
    if method == "movement":
        ranking = movement(blender.region)
        return Found(_highest(ranking, budget), ranking)
    if method == "first_order":
        ranking = first_order(blender, task)
        count = len(task.batches)
        return Found(_highest(ranking, budget), ranking, forward_passes=count, backward_passes=count)
    return _optimise(blender, task, method == "adaptive", settings, budget, watch)


def _highest(ranking: Units, budget: int) -> dict[str, Packed]:
    """The best-ranked units within the budget; raises :class:`UserError` where not even the first fits."""
    size, total = ranking.first_size(), ranking.region.n_entries
    if size > budget:
        raise UserError(
            f"The best unit holds {size} of {total} weights and the sparsity leaves room for {budget}: give a sparsity "
            f"of {math.ceil(size / total * 1e4) / 1e4:g} or more, or a finer level."
        )
    return _packed(ranking.region, ranking.top(budget).__getitem__)


def movement(region: Region) -> Units:
    """Squared change of every unit (the paper's base mask)."""
    ranking = Units(region)
    for name, part in region.parts.items():
        ranking.add(name, part.movement())
    return ranking


def most_moved(region: Region, entries: int) -> dict[str, Tensor]:
    """The mask of the units that moved most; nothing as large as the weights is held for it."""
    if region.sizes is None:
        return highest(lambda name: region.parts[name].movement(), list(region.parts), entries)
    return movement(region).top(entries)


def first_order(blender: Blender, task: Task) -> Units:
    """-dL/dgamma at the base: how much of the loss each unit would take away, to first order."""
    effects = Units(blender.region)
    _accumulate(blender, task, lambda name: blender.region.parts[name].base.new_zeros(()), effects)
    for flat in effects.flat.values():
        flat.neg_()
    return effects


def _accumulate(blender: Blender, task: Task, gamma: Callable[[str], Tensor], slopes: Units | Slopes) -> None:
    """Add the mean over batches of dL/dgamma to ``slopes``."""
    for batch in task.batches:
        with blender.soft(gamma, slopes.add) as model:
            predicted, label = task.classify(model, batch)
            blender.backward(cross_entropy(predicted.float(), label) / len(task.batches))


def _optimise(blender: Blender, task: Task, adaptive: bool, settings: Settings, budget: int, watch: Progress) -> Found:
    """Steps on the logits; the rounded mask that does best on the task is kept (ties: the smaller one).

    The paper's gamma = gamma_b + (1 - 2 gamma_b) sigmoid(S - b) is sigmoid(L) with L = S - b where gamma_b is 0 and
    L = b - S where it is 1, and its step on S is the same step on L; so gamma_b need not be held.
    """
    if settings.offset is None:
        settings = replace(settings, offset=3.0 if adaptive else 10.0)
    logits = _start(blender, settings, budget)
    slopes = Slopes(logits)
    step = _Adaptive(settings) if adaptive else _Plain(settings)
    best, best_key, history = _packed(blender.region, logits.on), (-1.0, 0), []
    watch.start("graft", settings.epochs)
    for _ in tracked(range(settings.epochs), watch):
        step.before(slopes)
        _accumulate(blender, task, lambda name: torch.sigmoid(logits.at(name)), slopes)
        step.take(logits, slopes)
        accuracy = grafted_outcome(task, blender, logits.on).accuracy
        size = sum(int(logits.on(name).sum()) * part.entries_per_unit for name, part in blender.region.parts.items())
        history.append((accuracy, size))
        if (accuracy, -size) > best_key:
            best, best_key = _packed(blender.region, logits.on), (accuracy, -size)
    watch.finish()
    passes = settings.epochs * len(task.batches)
    return Found(best, logits, 2 * passes, passes, tuple(history))


def _packed(region: Region, mask: Callable[[str], Tensor]) -> dict[str, Packed]:
    return {name: Packed.of(mask(name)) for name in region.parts}


def _start(blender: Blender, settings: Settings, budget: int) -> Units:
    selected = most_moved(blender.region, budget) if settings.start == "movement" else None
    logits = Units(blender.region)
    generator = torch.Generator().manual_seed(settings.seed)
    if selected is not None:
        for name, mask in selected.items():
            logits.add(name, mask.float())
    for flat in logits.flat.values():
        sign = (flat > 0).float().mul_(-2).add_(1)
        flat.copy_(torch.rand(flat.shape, generator=generator)).sub_(settings.offset or 0.0).mul_(sign)
    return logits


class _Plain:
    """The paper's plain gradient step on S."""

    def __init__(self, settings: Settings) -> None:
        self.lr, self.offset = settings.lr, settings.offset or 0.0

    def before(self, slopes: Slopes) -> None:
        slopes.zero()

    def take(self, logits: Units, slopes: Slopes) -> None:
        def along(key: str) -> Tensor:
            gamma = torch.sigmoid(logits.flat[key])
            return slopes.read(key).mul_(gamma.mul_(1 - gamma))

        if self.lr is None:
            largest = max(float(along(key).abs_().max()) for key in logits.flat)
            self.lr = _FIRST_STEP * self.offset / largest if largest > 0 else 0.0
        for key, logit in logits.flat.items():
            logit.sub_(along(key), alpha=self.lr)


class _Adaptive:
    """Bounded steps on the loss plus an explicit price for every unit that is on (a relaxed L0 penalty).

    The logits move by at most ``lr`` an epoch, -lr * tanh((m + price) / price) with m the momentum of dL/dgamma:
    sign descent (Bernstein et al. 2018) softened around the price. Adam's second moment would need a copy more
    of the weights and would lift units that do next to nothing to full speed. The price is ``penalty`` times the
    strongest unit's effect at the start.
    """

    momentum = 0.9

    def __init__(self, settings: Settings) -> None:
        self.lr = 0.5 if settings.lr is None else settings.lr
        self.penalty, self.bound = settings.penalty, settings.offset or 0.0
        self.price = 0.0
        self.count = 0

    def before(self, slopes: Slopes) -> None:
        slopes.fade(self.momentum)

    def take(self, logits: Units, slopes: Slopes) -> None:
        self.count += 1
        # the momentum sums (1 - m^t) / (1 - m) gradients
        scale = (1 - self.momentum) / (1 - self.momentum**self.count)
        if self.count == 1:
            self.price = self.penalty * max(float(-slopes.read(key).min()) for key in logits.flat)
        if self.price <= 0:
            return
        for key, logit in logits.flat.items():
            logit.sub_(slopes.read(key).mul_(scale / self.price).add_(1).tanh_(), alpha=self.lr)
            logit.clamp_(-self.bound, self.bound)
