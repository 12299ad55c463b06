"""Main memory for recorded rows, used again once the rows in it are gone.

What is kept would otherwise lie between the activations of a forward pass, whose memory the C library then cannot use
again as it does in a bare forward: it goes back to the system and comes again page by page, which on a small model
costs more than copying the rows. For rows that come from a GPU, fetching new pages costs more than the transfer.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import defaultdict

import numpy as np
import torch

from workbench.typing import Tensor

PIECE_BYTES = 8 * 2**20
"""Small tensors share pieces of this size: so much, at most, stays in use for the sake of one of them."""
LARGE = PIECE_BYTES // 2
"""A tensor of so many bytes has a piece of its own."""
SPARE_BYTES = 128 * 2**20
"""What is held for later rows, at most."""
HUGE_PAGE = 2 * 2**20
ALIGNMENT = 64


class Spare:
    """Pieces that no tensor uses any more."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[mmap.mmap]] = defaultdict(list)
        self._lock = threading.RLock()  # the collector may give one back while this thread takes one

    @property
    def nbytes(self) -> int:
        """How much is held."""
        return sum(size * len(pieces) for size, pieces in self._pieces.items())

    def take(self, size: int) -> np.ndarray:
        """[byte] of a piece, which comes back when the array and all tensors in it are gone."""
        with self._lock:
            piece = self._pieces[size].pop() if self._pieces[size] else _mapped(size)
        held = np.frombuffer(piece, dtype=np.uint8)
        weakref.finalize(held, self._give_back, piece).atexit = False
        return held

    def _give_back(self, piece: mmap.mmap) -> None:
        size = len(piece)
        with self._lock:
            if self.nbytes + size <= SPARE_BYTES:
                self._pieces[size].append(piece)


def _mapped(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


SPARE = Spare()


class RowMemory:
    """Memory for the rows of one recording: tensors side by side, each with a storage of its own size."""

    def __init__(self) -> None:
        self._piece: np.ndarray | None = None
        self._used = 0

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor in main memory."""
        count = shape.numel()
        size = count * dtype.itemsize
        if size >= LARGE or not size:
            return empty(shape, dtype)
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if self._piece is None or start + size > PIECE_BYTES:
            self._piece, start = SPARE.take(PIECE_BYTES), 0
        self._used = start + size
        return torch.frombuffer(self._piece, dtype=dtype, count=count, offset=start).view(shape)

    def copy(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of ``rows``, from whatever device."""
        return self.empty(rows.shape, dtype or rows.dtype).copy_(rows)


def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in main memory; a large one has a piece of its own."""
    count = shape.numel()
    size = count * dtype.itemsize
    if size < LARGE:
        return torch.empty(shape, dtype=dtype)
    piece = SPARE.take(-(-size // HUGE_PAGE) * HUGE_PAGE)
    return torch.frombuffer(piece, dtype=dtype, count=count).view(shape)
