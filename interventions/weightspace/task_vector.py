"""Updates as vectors: add, negate, scale, by layer (task arithmetic, Ilharco et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interventions.weightspace.graft import Graft
from interventions.weightspace.lazy_tensors import LazyTensors
from interventions.weightspace.swapping import base_parameters, check_same_shape, find_parameter
from interventions.weightspace.tuned_values import changed_names, exact_change
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

_PIECE = 2**20
"""Entries that are added in float64 at once."""


@dataclass(frozen=True, eq=False)
class TaskVector:
    """``changes``: parameter name -> what is added to the base's tensor, float32. Names that are absent change nothing.

    Arithmetic is lazy: a sum of five vectors holds one tensor of each at a time. ``(a + b) * 0.5``, ``-a``, ``a - b``.

    Example:
        >>> vector = TaskVector.from_pair(pair)  # doctest: +SKIP
        >>> with (0.5 * vector).graft(pair.base).entered(pair.base): ...  # doctest: +SKIP
    """

    changes: Mapping[str, Any]
    """Any: a type checked at runtime would read a lazy tensor."""

    @classmethod
    def from_pair(cls, pair: Any) -> TaskVector:
        """tuned - base of every parameter that differs, read when asked for.

        Of an adapter it is the change that the adapter makes, not rounded to the base's dtype.
        """
        return cls(LazyTensors(changed_names(pair), exact_change(pair)))

    def held(self) -> TaskVector:
        """The same with every tensor in memory: independent of the models that it was read from."""
        return TaskVector({name: change.clone() for name, change in self.changes.items()})

    def __add__(self, other: TaskVector) -> TaskVector:
        return combined([self, other], lambda _, changes: changes[0] + changes[1])

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-other)

    def __mul__(self, factor: float) -> TaskVector:
        return self.by_name(lambda _: factor)

    __rmul__ = __mul__

    def by_name(self, factor: Callable[[str], float]) -> TaskVector:
        """Each tensor times the factor of its name: one coefficient per layer, module or block (aTLAS, LiNeS)."""
        return TaskVector(LazyTensors(self.changes, lambda name: self.changes[name] * factor(name)))

    def norm(self) -> float:
        """The Frobenius norm of the whole change."""
        return math.sqrt(sum(float(change.double().square().sum()) for change in self.changes.values()))

    def cosine(self, other: TaskVector) -> float:
        """The cosine of the two changes; 0 where one is nothing."""
        product = sum(
            float((self.changes[name].double() * other.changes[name].double()).sum())
            for name in self.changes
            if name in other.changes
        )
        lengths = self.norm() * other.norm()
        return product / lengths if lengths else 0.0

    def sign_shuffled(self, seed: int = 0) -> TaskVector:
        """The control: every entry keeps its size and gets a random sign."""
        order = {name: number for number, name in enumerate(self.changes)}

        def read(name: str) -> Tensor:
            change = self.changes[name]
            generator = torch.Generator().manual_seed(seed * 1_000_003 + order[name])
            signs = torch.randint(0, 2, change.shape, generator=generator).mul_(2).sub_(1)
            return change * signs.to(change)

        return TaskVector(LazyTensors(self.changes, read))

    def thinned(self, share: float, seed: int = 0) -> TaskVector:
        """A random ``share`` of the entries taken out: a control for taking a part of that norm out."""
        order = {name: number for number, name in enumerate(self.changes)}

        def read(name: str) -> Tensor:
            change = self.changes[name]
            generator = torch.Generator().manual_seed(seed * 1_000_003 + order[name])
            return change * (torch.rand(change.shape, generator=generator) >= share).to(change)

        return TaskVector(LazyTensors(self.changes, read))

    def graft(self, base: AdaptedModel) -> Graft:
        """base + change as an intervention on ``base``: reversible, and at strength 0 the base bit for bit.

        The largest tensors are made first, while little else is held. Raises :class:`UserError` for tensors of another
        model, and where the sum overflows the base's dtype.
        """
        parameters = base_parameters(base.hf)
        order = sorted(self.changes, key=lambda name: -find_parameter(parameters, name).numel())
        new = {name: self.value(base, name) for name in order}
        return Graft(dict.fromkeys(self.changes), {name: new[name] for name in self.changes})

    def value(self, base: AdaptedModel, name: str) -> Tensor:
        """One tensor of base + change, rounded once to the base's dtype."""
        parameter = find_parameter(base_parameters(base.hf), name)
        change = self.changes[name]
        if change.shape != parameter.shape:
            check_same_shape(name, change, parameter)
        total = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        flat, before, moved = total.view(-1), parameter.detach().reshape(-1), change.reshape(-1)
        for start in range(0, len(flat), _PIECE):
            here = slice(start, start + _PIECE)
            flat[here] = (before[here].double() + moved[here].to(before.device).double()).to(parameter.dtype)
        if not bool(torch.isfinite(total).all()):
            raise UserError(f"base + change of {name} overflows {parameter.dtype}: give smaller coefficients.")
        return total

    def save(self, base: AdaptedModel, folder: str | Path) -> Path:
        """Write base + change as a whole model that transformers loads."""
        if hasattr(base.hf, "peft_config"):
            raise UserError("This base carries an adapter: load it alone (workbench.load_model) to save a sum.")
        with self.graft(base).entered(base):
            base.hf.save_pretrained(folder)
        return Path(folder)


def combined(vectors: list[TaskVector], rule: Callable[[str, Sequence[Tensor]], Tensor]) -> TaskVector:
    """One vector of several by ``rule(name, changes)``, tensor by tensor; a vector without a name counts as zeros.

    ``changes`` reads a vector's tensor when it is asked for, so a rule that takes them in turn holds one at a time.
    """
    if not vectors:
        raise UserError("There is nothing to merge: give at least one update.")
    names = [name for vector in vectors for name in vector.changes]
    return TaskVector(LazyTensors(names, lambda name: rule(name, _Changes(name, vectors))))


class _Changes(Sequence[Tensor]):
    """The change of one tensor in every vector, read anew each time."""

    def __init__(self, name: str, vectors: list[TaskVector]) -> None:
        self._name, self._vectors = name, vectors
        self._first = next(vector.changes for vector in vectors if name in vector.changes)
        self._shape: torch.Size | None = None

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, place: Any) -> Any:
        """Any: of a slice, the changes of those vectors."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        held = self._vectors[place].changes
        if self._name not in held:
            return torch.zeros_like(self._first[self._name])
        change = held[self._name]
        self._shape = self._shape or change.shape
        if change.shape != self._shape:
            raise UserError(
                f"{self._name} is {list(self._shape)} in one update and {list(change.shape)} in another: they are "
                "updates of different models; give fine-tunes of one base."
            )
        return change
