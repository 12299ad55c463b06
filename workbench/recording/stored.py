"""One stored tensor over many shards: memory-mapped, and only the rows asked for are read."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from workbench.recording.layout import Shard

_OPEN_SHARDS, _OPEN_IN_A_ROW = 64, 4
"""How many shards stay mapped at once: for rows here and there, and for rows that are read one behind the other."""


class MappedShards:
    """The shards of a store as one run of rows."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._ends = list(accumulate(shard.rows for shard in shards))
        self.rows: int = self._ends[-1] if self._ends else 0
        self._mapped = lru_cache(maxsize=_OPEN_SHARDS)(self._map)
        self._in_a_row = lru_cache(maxsize=_OPEN_IN_A_ROW)(self._map)

    def names(self) -> list[str]:
        """The tensors of every shard, sorted."""
        return sorted(self._in_a_row(0).keys()) if self._shards else []

    def example(self, name: str) -> torch.Tensor:
        """No rows of the tensor ``name``: its trailing shape and dtype."""
        return self._in_a_row(0).get_tensor(name)[:0]

    def pieces(self, name: str, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Views of the rows ``start`` to ``stop`` of the tensor ``name``, shard by shard."""
        number = bisect.bisect_right(self._ends, start)
        while start < stop:
            first = self._ends[number - 1] if number else 0
            end = min(stop, self._ends[number])
            yield self._in_a_row(number).get_tensor(name)[start - first : end - first]
            start, number = end, number + 1

    def gather(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The given rows (int64, none negative) of the tensor ``name``, in the order given."""
        numbers = torch.bucketize(rows, torch.tensor(self._ends), right=True)
        example = self.example(name)
        gathered = torch.empty((len(rows), *example.shape[1:]), dtype=example.dtype)
        for number in numbers.unique().tolist():
            places = (numbers == number).nonzero().squeeze(1)
            first = self._ends[number - 1] if number else 0
            gathered[places] = self._mapped(number).get_tensor(name)[rows[places] - first]
        return gathered

    def _map(self, number: int) -> Any:
        return safe_open(str(self._shards[number].path), framework="pt")


class StoredTensor:
    """A tensor ``[row, ...]`` on disk. Indexing reads what it names and gives a tensor of one's own.

    The first index may be a number, a slice, a list or array of row numbers, or a mask; the others are
    torch's. ``load()`` reads all of it; any torch function takes it as if it were loaded.
    """

    def __init__(self, shards: MappedShards, name: str) -> None:
        self._shards, self._name = shards, name
        example = shards.example(name)
        self.shape: torch.Size = torch.Size((shards.rows, *example.shape[1:]))
        self.dtype: torch.dtype = example.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> torch.Tensor:
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        if rows is Ellipsis or rows is None:
            return self.load()[key]
        if isinstance(rows, int | np.integer):
            return self._gather(torch.tensor([int(rows)]))[0][rest]
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._range(start, stop, rest)
            return self._gather(torch.arange(start, stop, step))[(slice(None), *rest)]
        numbers = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows))
        if numbers.dtype == torch.bool:
            if numbers.shape != (len(self),):
                raise IndexError(f"the mask has shape {tuple(numbers.shape)}; expected ({len(self)},)")
            numbers = numbers.nonzero().squeeze(1)
        gathered = self._gather(numbers.reshape(-1).long())[(slice(None), *rest)]
        return gathered.reshape(*numbers.shape, *gathered.shape[1:])

    def load(self) -> torch.Tensor:
        """All rows, in memory."""
        return self._range(0, len(self), ())

    def numpy(self) -> np.ndarray:
        """All rows as numpy, bfloat16 (which numpy lacks) as float32."""
        loaded = self.load()
        return (loaded.float() if loaded.dtype == torch.bfloat16 else loaded).numpy()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """All rows, moved or cast as ``torch.Tensor.to`` does."""
        return self.load().to(*args, **kwargs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return self.load().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return torch.empty(0).__dlpack_device__()

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*_loaded(args), **_loaded(kwargs or {}))

    def __repr__(self) -> str:
        return f"StoredTensor({self._name!r}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def _range(self, start: int, stop: int, rest: tuple[Any, ...]) -> torch.Tensor:
        pieces = [piece[(slice(None), *rest)] for piece in self._shards.pieces(self._name, start, stop)]
        if not pieces:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)[(slice(None), *rest)]
        # A copy even of a single piece: a view would let its owner write through to the mapped file.
        return pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces)

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        counted = torch.where(rows < 0, rows + len(self), rows)
        if len(counted) and (int(counted.min()) < 0 or int(counted.max()) >= len(self)):
            raise IndexError(f"row {rows[(counted < 0) | (counted >= len(self))][0]} of {len(self)} rows")
        return self._shards.gather(self._name, counted)


def _loaded(value: Any) -> Any:
    """``value`` with every stored tensor in it loaded."""
    match value:
        case StoredTensor():
            return value.load()
        case tuple() | list():
            return type(value)(_loaded(item) for item in value)
        case dict():
            return {name: _loaded(item) for name, item in value.items()}
    return value
