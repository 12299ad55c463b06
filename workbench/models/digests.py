"""Sha256 of weights, tensor by tensor: of loaded ones, and of a checkpoint's while it is read for another purpose."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from workbench.models.checkpoints import StoredTensor, opened, stored_tensors
from workbench.typing import Tensor

_CHUNK = 1 << 20  # entries of a stored tensor held at a time


def digest(tensor: Tensor) -> str:
    """Sha256 of one tensor's dtype, shape and bytes."""
    started = _begun(tensor.dtype, tensor.shape)
    _add(started, tensor)
    return started.hexdigest()


def _digest_of_last(held: list[Tensor]) -> str:
    """Takes the tensor out: a pool lets go of its arguments later than of its result."""
    return digest(held.pop())


def digest_stored(stored: StoredTensor) -> tuple[str, torch.dtype]:
    """The :func:`digest` of a tensor of a checkpoint, which is never whole in memory; and its dtype."""
    rows = stored.shape[0] if stored.shape else 1
    step = max(1, _CHUNK // max(1, math.prod(stored.shape[1:])))
    started, dtype = None, torch.float32
    for start in range(0, max(rows, 1), step):
        # opened anew: the pages of a memory map count as ours until it is closed
        with opened(stored.file) as file:
            whole = rows <= step
            piece = file.get_tensor(stored.name) if whole else file.get_slice(stored.name)[start : start + step]
        dtype = piece.dtype
        started = started or _begun(dtype, piece.shape if whole else stored.shape)
        _add(started, piece)
    assert started is not None
    return started.hexdigest(), dtype


def _begun(dtype: torch.dtype, shape: Iterable[int]) -> Any:
    return hashlib.sha256(f"{dtype}{list(shape)}".encode())


def _add(started: Any, tensor: Tensor) -> None:
    there = tensor.detach().to("cpu").contiguous()
    if there.numel():
        started.update(there.reshape(-1).view(torch.uint8).numpy().data)


def combined(digests: Iterable[tuple[str, str]]) -> str:
    """Sha256 over names and digests, in the order of the names."""
    return hash_text("\n".join(f"{name} {digest}" for name, digest in sorted(digests)))


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FolderDigests:
    """The digests of a checkpoint's tensors, most of which are read for something else anyway.

    A tensor is hashed in another thread while its reader works with it, and let go of before the next one is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = stored_tensors(folder)
        self._found: dict[str, str] = {}
        self._dtypes: Counter[torch.dtype] = Counter()
        self._running: tuple[str, Future[str]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digests")

    def read(self, name: str) -> Tensor:
        """A tensor of the checkpoint, by its stored name; it must not be changed."""
        self._wait()
        with opened(self.tensors[name].file) as file:
            tensor: Tensor = file.get_tensor(name)
        if name not in self._found:
            self._count(name, tensor.dtype)
            self._running = name, self._pool.submit(_digest_of_last, [tensor])
        return tensor

    def all(self) -> Iterable[tuple[str, str]]:
        """Stored name and digest of every tensor; those that nobody has read are read now, in pieces."""
        self._wait()
        for name, stored in self.tensors.items():
            if name not in self._found:
                self._found[name], dtype = digest_stored(stored)
                self._count(name, dtype)
        return self._found.items()

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of most entries so far."""
        floating = Counter({dtype: count for dtype, count in self._dtypes.items() if dtype.is_floating_point})
        return floating.most_common(1)[0][0] if floating else torch.float32

    def _count(self, name: str, dtype: torch.dtype) -> None:
        self._dtypes[dtype] += math.prod(self.tensors[name].shape)

    def _wait(self) -> None:
        if self._running is not None:
            name, future = self._running
            self._found[name] = future.result()
            self._running = None
