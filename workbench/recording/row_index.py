"""The index of recorded rows: which prompt, position and token each row is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from workbench.engine.template_tokens import TemplateTokens
from workbench.prompts.collection import Prompts
from workbench.prompts.token_texts import token_texts
from workbench.recording.capture import nonfinite_rows
from workbench.recording.plan import Plan
from workbench.typing import Int, Tensor

_PHASES = ("prompt", "generated")


@dataclass(frozen=True)
class Rows:
    """Where some rows come from. Their index, with the text of every token, is made when asked for."""

    prompt: np.ndarray
    """[row]"""
    position: np.ndarray
    """[row]"""
    nonfinite: pa.Array
    """[row] names of the tensors that are NaN or infinite there, joined by ``;``; null: none."""
    table: Callable[[], pa.Table]
    """The index."""

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """Rows whose index is made already."""
        flags = table["nonfinite"].combine_chunks()
        return cls(table["prompt"].to_numpy(), table["position"].to_numpy(), flags, lambda: table)

    @property
    def finite(self) -> bool:
        """Whether no row holds a NaN or an infinite value."""
        return self.nonfinite.null_count == len(self)

    def __len__(self) -> int:
        return len(self.prompt)


class RowIndex:
    """Makes the index of any rows of one recording, column by column."""

    def __init__(self, plan: Plan, prompts: Prompts, tokenizer: Any) -> None:
        self._plan = plan
        self._prompts = prompts
        self._tokenizer = tokenizer

    def rows(self, prompts: Int[Tensor, " row"], positions: Int[Tensor, " row"], suspects: dict[str, Tensor]) -> Rows:
        """The rows at ``positions`` of ``prompts``; ``suspects`` [row, ...] are searched for what is not finite."""
        prompt, position = prompts.numpy(), positions.numpy()
        flags = _flags(suspects, len(prompt))
        return Rows(prompt, position, flags, partial(self._table, prompt, position, flags))

    def _table(self, prompt: np.ndarray, position: np.ndarray, flags: pa.Array) -> pa.Table:
        ids = self._ids[self._starts[prompt] + position]
        distinct, place = np.unique(ids, return_inverse=True)
        texts = token_texts(distinct.tolist(), self._tokenizer)
        generated = (position >= self._prompt_lengths[prompt]).astype(np.int64)
        return pa.table({
            "prompt": prompt, "position": position, "token_id": ids,
            "token": pa.array(texts, pa.string()).take(pa.array(place)),
            "phase": pa.array(_PHASES).take(pa.array(generated)),
            "content": self._content[self._starts[prompt] + position],
            "group": self._groups.take(pa.array(prompt)),
            "label": self._labels.take(pa.array(prompt)),
            "nonfinite": flags,
        })  # fmt: skip

    @cached_property
    def _ids(self) -> np.ndarray:
        """The token ids of all prompts, one after the other."""
        return np.fromiter(chain.from_iterable(self._plan.ids), dtype=np.int64)

    @cached_property
    def _content(self) -> np.ndarray:
        """Of all prompts, one after the other: whether a token is neither first, nor special, nor the template's."""
        if self._tokenizer is None:
            return np.concatenate([np.arange(len(row)) > 0 for row in self._plan.ids])
        template = TemplateTokens(self._tokenizer)
        return np.array([marked for row in self._plan.ids for marked in template.content(row)], dtype=bool)

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where each prompt begins there."""
        lengths = np.array([len(row) for row in self._plan.ids], dtype=np.int64)
        return np.cumsum(lengths) - lengths

    @cached_property
    def _prompt_lengths(self) -> np.ndarray:
        return np.array(self._plan.prompt_lengths, dtype=np.int64)

    @cached_property
    def _groups(self) -> pa.Array:
        return pa.array(self._prompts.cluster_names)

    @cached_property
    def _labels(self) -> pa.Array:
        return pa.array([None if row.label is None else str(row.label) for row in self._prompts])


def _flags(tensors: dict[str, Tensor], rows: int) -> pa.Array:
    bad = nonfinite_rows(tensors)
    if not bad:
        return pa.nulls(rows)
    named = [";".join(name for name, marked in bad.items() if bool(marked[row])) for row in range(rows)]
    return pa.array([names or None for names in named], pa.string())
