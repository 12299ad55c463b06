"""Tensors by name that are made when they are asked for, so that arithmetic on models streams tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from workbench.typing import Tensor

PIECE = 2**20
"""Entries of a piece."""


class LazyTensors(Mapping[str, Tensor]):
    """``names``, and a function that makes the tensor of a name anew each time; nothing is kept.

    ``pieces`` makes the tensor's entries in order, :data:`PIECE` at a time, where that spares holding it whole; then
    ``read`` makes a tensor that nobody else holds.
    """

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], Tensor],
        pieces: Callable[[str], Iterator[Tensor]] | None = None,
    ) -> None:
        self._names = list(dict.fromkeys(names))
        self._known = set(self._names)
        self._read = read
        self._pieces = pieces

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    @property
    def streams(self) -> bool:
        """Whether pieces are made without the whole tensor."""
        return self._pieces is not None

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The entries of a tensor in order, a piece at a time."""
        return split(self[name]) if self._pieces is None else self._pieces(name)


def streams(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the pieces of these tensors are made without the whole."""
    return isinstance(tensors, LazyTensors) and tensors.streams


def pieces_of(tensors: Mapping[str, Tensor], name: str) -> Iterator[Tensor]:
    """The entries of ``tensors[name]`` in order, a piece at a time."""
    return tensors.pieces(name) if isinstance(tensors, LazyTensors) else split(tensors[name])


def split(tensor: Tensor) -> Iterator[Tensor]:
    """The entries of a tensor in order, :data:`PIECE` at a time."""
    return iter(tensor.reshape(-1).split(PIECE))
