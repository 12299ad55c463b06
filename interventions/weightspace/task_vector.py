"""Updates as vectors: add, negate, scale, by layer (task arithmetic, Ilharco et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interventions.weightspace.graft import Graft
from interventions.weightspace.lazy_tensors import LazyTensors, pieces_of, split, streams
from interventions.weightspace.swapping import base_parameters, check_same_shape, find_parameter
from interventions.weightspace.tuned_values import changed_names, exact_change
from workbench.errors import UserError
from workbench.files import check_new_folder, whole_folder
from workbench.models.adapted import AdaptedModel
from workbench.tensor_files import StoredTensors
from workbench.typing import Tensor


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

        def pieces(name: str) -> Iterator[Tensor]:
            return (piece * factor(name) for piece in pieces_of(self.changes, name))

        read = LazyTensors(
            self.changes, lambda name: self.changes[name] * factor(name), pieces if streams(self.changes) else None
        )
        return TaskVector(read)

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
        for new, before, moved in zip(split(total), split(parameter.detach()), split(change), strict=True):
            new.copy_(before.double() + moved.to(before.device).double())
            if not bool(torch.isfinite(new).all()):
                raise UserError(f"base + change of {name} overflows {parameter.dtype}: give smaller coefficients.")
        return total

    def save(self, base: AdaptedModel, folder: str | Path) -> Path:
        """Write base + change as a whole model that transformers loads, with the base's tokenizer if it has one.

        Beside the base one tensor is held at a time, but for a model whose files name or shape its tensors otherwise
        than memory does.

        Args:
            base: What the change is added to, without an adapter; it stays as it is.
            folder: A new folder, or an empty one; whole or not there at all.

        Raises:
            UserError: The folder holds something, the base carries an adapter, or the sum overflows the base's dtype.
        """
        if hasattr(base.hf, "peft_config"):
            raise UserError("This base carries an adapter: load it alone (workbench.load_model) to save a sum.")
        target = Path(folder)
        check_new_folder(target)
        with whole_folder(target) as partial:
            partial.mkdir(parents=True)
            base.hf.save_pretrained(partial)
            if not self._write_into(StoredTensors.of(partial), base):
                with self.graft(base).entered(base):
                    base.hf.save_pretrained(partial)
            if base.tokenizer is not None:
                base.tokenizer.save_pretrained(str(partial))
        return target

    def _write_into(self, stored: StoredTensors, base: AdaptedModel) -> bool:
        """Write base + change over the base's stored tensors; False, and nothing written, where one has no place."""
        parameters = base_parameters(base.hf)
        if not all(stored.has_room_for(name, find_parameter(parameters, name)) for name in self.changes):
            return False
        for name in self.changes:
            stored.overwrite(name, self.value(base, name))
        return True


def combined(vectors: list[TaskVector], rule: Callable[[str, Sequence[Tensor]], Tensor]) -> TaskVector:
    """One vector of several by ``rule(name, changes)``, tensor by tensor; a vector without a name counts as zeros.

    ``changes`` reads a vector's tensor when it is asked for, so a rule that takes them in turn holds one at a time, and
    one that takes their pieces (:func:`pieces_at`) less.
    """
    if not vectors:
        raise UserError("There is nothing to merge: give at least one update.")
    names = [name for vector in vectors for name in vector.changes]
    return TaskVector(LazyTensors(names, lambda name: rule(name, Changes(name, vectors))))


class Changes(Sequence[Tensor]):
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
            return [self[member] for member in range(*place.indices(len(self)))]
        held = self._vectors[place].changes
        if self._name not in held:
            return torch.zeros_like(self._first[self._name])
        change = held[self._name]
        self._shape = self._shape or change.shape
        if change.shape != self._shape:
            raise self._other_model(f"{list(change.shape)}")
        return change

    def own(self, place: int) -> Tensor:
        """One vector's change as a tensor to write into."""
        change: Tensor = self[place]
        return change if self._name in (held := self._vectors[place].changes) and streams(held) else change.clone()

    def pieces(self, place: int) -> Iterator[Tensor]:
        """The entries of one vector's change in order, a piece at a time."""
        held = self._vectors[place].changes
        if self._shape is None or self._name not in held or not streams(held):
            yield from split(self[place])
            return
        left = math.prod(self._shape)
        for piece in pieces_of(held, self._name):
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise self._other_model("another size")

    def _other_model(self, shape: str) -> UserError:
        return UserError(
            f"{self._name} is {list(self._shape or ())} in one update and {shape} in another: they are updates of "
            "different models; give fine-tunes of one base."
        )


def pieces_at(changes: Any, place: int) -> Iterator[Tensor]:
    """The entries of ``changes[place]`` in order, a piece at a time; Any: a type checked at runtime would read one."""
    return changes.pieces(place) if isinstance(changes, Changes) else split(changes[place])
