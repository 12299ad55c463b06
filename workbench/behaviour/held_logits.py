"""Next-token logits of one model that others are compared with, in memory that does not grow with the prompts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from tempfile import TemporaryFile
from typing import IO

import torch

from workbench.behaviour.subject import Subject, Work, last_logits
from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

IN_MEMORY = 256 * 2**20
"""Bytes that are held in memory; more of them lie in a temporary file, which goes with the object."""


class HeldLogits:
    """Logits [prompt, vocab] in float32, put in and read batch by batch.

    Example:
        ``held = HeldLogits.of(Subject("base", model), prompts, Work()); held[[0, 2]]``  # [2, vocab]
    """

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts
        self._vocab = 0
        self._tensor: Tensor | None = None
        self._file: IO[bytes] | None = None

    @classmethod
    def of(cls, subject: Subject, prompts: Prompts, work: Work) -> HeldLogits:
        """Those of a subject at the last token of every prompt."""
        held = cls(len(prompts))
        ids = encode(prompts, subject.model.tokenizer, subject.model.max_positions)
        last_logits(subject, ids, held.put, work)
        return held

    def put(self, rows: Sequence[int], logits: Float[Tensor, "row vocab"]) -> None:
        """Hold the logits of these rows.

        Raises:
            UserError: They need a temporary file, and there is no room for it.
        """
        if not self._vocab:
            self._open(logits.shape[-1])
        if self._tensor is not None:
            self._tensor[list(rows)] = logits
            return
        assert self._file is not None
        try:
            for row, values in zip(rows, logits, strict=True):
                os.pwrite(self._file.fileno(), values.float().numpy().tobytes(), row * self._row_bytes)
        except OSError as error:
            raise UserError(
                f"The base's logits of {self.prompts} prompts take {self.prompts * self._row_bytes / 1e6:.0f} MB of "
                f"temporary files, which cannot be written ({error.strerror}): free some space, set TMPDIR, or give "
                "fewer prompts (--limit)."
            ) from error

    def __getitem__(self, rows: Sequence[int]) -> Float[Tensor, "row vocab"]:
        if self._tensor is not None:
            return self._tensor[list(rows)]
        assert self._file is not None
        read = [os.pread(self._file.fileno(), self._row_bytes, row * self._row_bytes) for row in rows]
        return torch.frombuffer(bytearray(b"".join(read)), dtype=torch.float32).view(len(read), self._vocab)

    @property
    def _row_bytes(self) -> int:
        return 4 * self._vocab

    def _open(self, vocab: int) -> None:
        self._vocab = vocab
        if self.prompts * self._row_bytes <= IN_MEMORY:
            self._tensor = torch.empty(self.prompts, vocab)
        else:
            self._file = TemporaryFile(prefix="tunescope-logits-")
            weakref.finalize(self, self._file.close)
