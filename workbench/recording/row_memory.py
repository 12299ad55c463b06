"""Main memory for recorded rows: a few large pieces, used again once the rows in them are gone.

What is kept would otherwise lie between the activations of a forward pass, whose memory the C library then cannot use
again as it does in a bare forward: it goes back to the system and comes again page by page, which on a small model
costs more than copying the rows.
"""

from __future__ import annotations

import mmap
import threading
import weakref

import numpy as np
import torch

from workbench.typing import Tensor

PIECE_BYTES = 8 * 2**20
"""As much, at most, stays in use for the sake of one small tensor."""
SPARE_PIECES = 8
"""Pieces held for later rows."""
LARGE = PIECE_BYTES // 2
"""Tensors of so many bytes get memory of their own."""
ALIGNMENT = 64


class _Spare:
    """Pieces that no tensor uses any more."""

    def __init__(self) -> None:
        self._pieces: list[mmap.mmap] = []
        self._lock = threading.RLock()  # the collector may give one back while this thread takes one

    def take(self) -> np.ndarray:
        """[byte] of a piece, which comes back when the array and all tensors in it are gone."""
        with self._lock:
            piece = self._pieces.pop() if self._pieces else _mapped()
        held = np.frombuffer(piece, dtype=np.uint8)
        weakref.finalize(held, self._give_back, piece).atexit = False
        return held

    def _give_back(self, piece: mmap.mmap) -> None:
        with self._lock:
            if len(self._pieces) < SPARE_PIECES:
                self._pieces.append(piece)


def _mapped() -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, PIECE_BYTES)
    made = mmap.mmap(-1, PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


_SPARE = _Spare()


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
            return torch.empty(shape, dtype=dtype)
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if self._piece is None or start + size > PIECE_BYTES:
            self._piece, start = _SPARE.take(), 0
        self._used = start + size
        return torch.frombuffer(self._piece, dtype=dtype, count=count, offset=start).view(shape)
