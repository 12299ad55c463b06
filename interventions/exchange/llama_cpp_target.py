"""llama.cpp's own logits, with and without a control vector, by llama-cpp-python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interventions.exchange.control_vectors import from_gguf
from workbench.errors import MissingExtra, UserError
from workbench.typing import Float, Tensor


class LlamaCpp:
    """A GGUF model in llama.cpp on the CPU; logits [pos, vocab] of one row of token ids at a time."""

    def __init__(self, weights: Path, vector: Path, context: int) -> None:
        """``weights``: the model's own .gguf file; ``vector``: the control vector.

        Raises :class:`MissingExtra` without llama-cpp-python, :class:`UserError` for a file that it cannot load.
        """
        if find_spec("llama_cpp") is None:
            raise MissingExtra("Certifying a control vector in llama.cpp", "llama")
        import llama_cpp

        if not weights.is_file():
            raise UserError(f"There is no file {weights}: give the model's own .gguf file as weights.")
        try:
            self._llama: Any = llama_cpp.Llama(
                str(weights), n_ctx=context, n_batch=context, n_ubatch=context, logits_all=True, verbose=False
            )
        except (ValueError, OSError) as error:
            raise UserError(f"llama.cpp cannot load {weights}: {str(error)[:160]}") from error
        self.version: str = llama_cpp.__version__
        self._vector = self._buffer(vector)

    def logits(self, ids: Sequence[int], *, steered: bool) -> Float[Tensor, "pos vocab"]:
        """Of every position of ``ids``."""
        with self._applied() if steered else _nothing():
            self._llama.reset()
            self._llama.eval(list(ids))
            return torch.from_numpy(np.array(self._llama.scores[: len(ids)], dtype=np.float32))

    def close(self) -> None:
        """Free the model."""
        self._llama.close()

    def _buffer(self, file: Path) -> np.ndarray:
        """The directions of blocks 1 .. n_layers - 1, one after the other; blocks without one are 0."""
        import llama_cpp

        layers, width = (
            int(count(self._llama.model)) for count in (llama_cpp.llama_model_n_layer, llama_cpp.llama_model_n_embd)
        )
        made = np.zeros((layers, width), dtype=np.float32)
        for offset in from_gguf(file):
            layer, vector = int(offset.layer), offset.vector  # type: ignore[attr-defined]
            if not 1 <= layer < layers or len(vector) != width:
                raise UserError(f"{file} has a direction of width {len(vector)} for block {layer}, and the model has "
                                f"{layers} blocks of width {width}: export it for this model.")  # fmt: skip
            made[layer - 1] = vector.numpy()
        return made

    @contextmanager
    def _applied(self) -> Iterator[None]:
        self._set(self._vector)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, vector: np.ndarray | None) -> None:
        import llama_cpp

        context, pointer = self._llama.ctx, ctypes.POINTER(ctypes.c_float)
        layers, width = self._vector.shape
        data = pointer() if vector is None else vector.ctypes.data_as(pointer)
        count = 0 if vector is None else vector.size
        failed = llama_cpp.llama_set_adapter_cvec(context, data, count, width, 1, layers)
        if failed:
            raise UserError("llama.cpp refused the control vector: export it for this model.")


@contextmanager
def _nothing() -> Iterator[None]:
    yield
