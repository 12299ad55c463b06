"""Rows from a GPU to main memory, while the models go on.

A plain copy waits for the GPU and then moves a few gigabytes a second, since the driver stages it through a buffer of
its own. Here the GPU fills page-locked buffers on a stream of its own, and threads empty them into the rows' memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import torch

from workbench.recording.row_memory import RowMemory
from workbench.typing import Tensor

SMALL = 2**18
"""Tensors of fewer bytes come in one transfer, since each costs as much as waiting for the device does."""
LARGE = 2**22
"""Smaller ones come by a plain copy: buffers and threads would cost more than they save."""
BUFFER_BYTES = 16 * 2**20
BUFFERS = 4
"""Their sum is how far the models may be ahead."""
THREADS = 3


class Transfer:
    """Brings tensors to main memory; all of one recording through the same buffers."""

    def __init__(self) -> None:
        self._memory = RowMemory()
        self._buffers: SimpleQueue[Tensor] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._under_way: list[Future[None]] = []

    def begin(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` in main memory, in the same order; their values are there once :meth:`finish` has returned.

        What is in main memory already stays as it is. The given tensors may be dropped, but not written to.
        """
        small = [name for name, tensor in tensors.items() if tensor.device.type != "cpu" and tensor.nbytes < SMALL]
        copied = self._together({name: tensors[name] for name in small})
        return {
            name: tensor if tensor.device.type == "cpu" else copied[name] if name in copied else self._send(tensor)
            for name, tensor in tensors.items()
        }

    def finish(self) -> None:
        """Wait for what is under way; raises what went wrong."""
        under_way, self._under_way = self._under_way, []
        for copy in under_way:
            copy.result()

    def close(self) -> None:
        """Let go of the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
            self._threads = None

    def _together(self, small: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copied: dict[str, Tensor] = {}
        for kind in {(tensor.device, tensor.dtype) for tensor in small.values()}:
            alike = {name: tensor for name, tensor in small.items() if (tensor.device, tensor.dtype) == kind}
            sent = torch.cat([tensor.reshape(-1) for tensor in alike.values()]).cpu()
            parts = sent.split([tensor.numel() for tensor in alike.values()])
            for (name, tensor), part in zip(alike.items(), parts, strict=True):
                copied[name] = self._memory.copy(part.view(tensor.shape))
        return copied

    def _send(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cuda" or rows.nbytes < LARGE:
            return self._memory.copy(rows)
        made = self._memory.empty(rows.shape, rows.dtype)
        sent, taken = (tensor.reshape(-1).view(torch.uint8) for tensor in (rows, made))
        for start in range(0, len(sent), BUFFER_BYTES):
            part = slice(start, start + BUFFER_BYTES)
            self._under_way.append(self._send_part(sent[part], taken[part].numpy()))
        return made

    def _send_part(self, sent: Tensor, taken: np.ndarray) -> Future[None]:
        threads, stream = self._started(), self._stream(sent.device)
        buffer = self._buffers.get()  # waits until a thread has emptied one
        filled = torch.cuda.Event()
        stream.wait_stream(torch.cuda.current_stream(sent.device))
        with torch.cuda.stream(stream):
            buffer[: len(sent)].copy_(sent, non_blocking=True)
            filled.record(stream)
        sent.record_stream(stream)  # its memory is not given to others before the copy is done
        return threads.submit(self._empty, buffer, filled, taken)

    def _empty(self, buffer: Tensor, filled: torch.cuda.Event, taken: np.ndarray) -> None:
        try:
            filled.synchronize()
            np.copyto(taken, buffer.numpy()[: len(taken)])
        finally:
            self._buffers.put(buffer)

    def _started(self) -> ThreadPoolExecutor:
        if self._threads is None:
            for _ in range(BUFFERS):
                self._buffers.put(torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True))
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rows")
        return self._threads

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]
