"""Tensors by name that are made when they are asked for, so that arithmetic on models streams tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from workbench.typing import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """``names``, and a function that makes the tensor of a name anew each time; nothing is kept."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names = list(dict.fromkeys(names))
        self._known = set(self._names)
        self._read = read

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
