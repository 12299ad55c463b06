"""A collection of prompts: loading, choosing rows, a content hash."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from workbench.cards import card
from workbench.errors import UserError
from workbench.files import write_text
from workbench.prompts.row import FIELDS, Prompt

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 8
"""How many rows a notebook shows."""
_AS_GIVEN = json.JSONEncoder(ensure_ascii=False)
_SORTED = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


class Prompts(Sequence[Prompt]):
    """Rows that do not change; every choice of rows is a new collection.

    A row has a ``prompt`` (text), ``messages`` (a chat) or ``input_ids``; where a method asks for them an ``answer``, a
    ``distractor``, a ``label``, a ``group`` (rows that are resampled together) and a ``contrast`` (its counterpart).

    An item is a :class:`Prompt`; a slice, a list of row numbers or a mask gives :class:`Prompts`.
    """

    def __init__(self, rows: Iterable[Prompt]) -> None:
        self._rows = tuple(rows)

    @classmethod
    def load(
        cls,
        path: str | Path,
        rename: Mapping[str, str] | None = None,
        *,
        chat: bool | None = None,
        system: str | None = None,
    ) -> Prompts:
        """Read a ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` or ``.txt`` file.

        ``rename`` maps the file's column names to ours: ``{"question": "prompt"}``; a text file holds one
        prompt a line; ``chat`` and ``system`` as for :meth:`of`. What cannot be read is a :class:`UserError` that
        names the line or row.
        """
        from workbench.prompts.reading import read_file

        return cls(read_file(Path(path), rename or {})).turned(chat=chat, system=system)

    @classmethod
    def of(
        cls,
        source: Any,
        rename: Mapping[str, str] | None = None,
        *,
        chat: bool | None = None,
        system: str | None = None,
    ) -> Prompts:
        """Prompts from a list of texts, dicts, chats or token ids, a DataFrame, a Hugging Face data set, a tensor of
        token ids [prompt, pos] without padding, a tokenizer's own output (its mask says which of the ids are padding),
        a dict of columns with ``input_ids``, or the ``Path`` of a file.

        Args:
            source: what holds the rows.
            rename: the source's column names -> ours.
            chat: False: texts are read as they are. None: they are user turns where the tokenizer has a chat template.
                True: the same, and an error where it has none. Rows that say it themselves keep their own.
            system: a system turn put in front of texts, and of chats that have none.

        Example:
            ``Prompts.of(["What is a monkey?"], system="Answer in one word.")``
        """
        if isinstance(source, Prompts):
            return source.turned(chat=chat, system=system)
        from workbench.prompts.reading import read_object

        return cls(read_object(source, rename or {})).turned(chat=chat, system=system)

    def turned(self, *, chat: bool | None = None, system: str | None = None) -> Prompts:
        """The rows with ``chat`` on those texts that do not say it, and behind a ``system`` turn; see :meth:`of`."""
        if chat is None and system is None:
            return self
        if chat is False and system is not None:
            raise UserError("A system turn makes a chat, and chat=False (--raw) none: give one of them.")
        return Prompts(row.turned(chat, system) for row in self._rows)

    @property
    def rows(self) -> tuple[Prompt, ...]:
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._rows)

    @overload
    def __getitem__(self, key: int) -> Prompt: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | np.ndarray) -> Prompts: ...
    def __getitem__(self, key: Any) -> Prompt | Prompts:
        if isinstance(key, int | np.integer):
            return self._rows[int(key)]
        if isinstance(key, slice):
            return Prompts(self._rows[key])
        numbers = np.asarray(key)
        if numbers.dtype == bool:
            if len(numbers) != len(self):
                raise UserError(f"The mask has {len(numbers)} entries for {len(self)} prompts; give one for each.")
            numbers = np.flatnonzero(numbers)
        return Prompts(self._rows[int(number)] for number in numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompts) and self._rows == other._rows

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    def filter(self, keep: Callable[[Prompt], bool]) -> Prompts:
        """The rows for which ``keep`` is true, in order."""
        return Prompts(row for row in self._rows if keep(row))

    def sample(self, limit: int, *, seed: int = 0) -> Prompts:
        """A seeded sample, in the rows' order: what ``--limit`` of a command reads.

        Args:
            limit: How many rows at most; more than there are is all of them.
            seed: Of the draw.

        Raises:
            UserError: ``limit`` is below 1.

        Example:
            ``probes.patching(pair, prompts.sample(60), "heads")``
        """
        return self[self.sample_numbers(limit, seed=seed)] if limit < 1 or limit < len(self) else self

    def sample_numbers(self, limit: int, *, seed: int = 0) -> np.ndarray:
        """The row numbers of :meth:`sample`, in order.

        Args:
            limit: How many rows at most.
            seed: Of the draw.

        Raises:
            UserError: ``limit`` is below 1.
        """
        if limit < 1:
            raise UserError(f"A sample of {limit} prompts holds none; give a limit of 1 or more.")
        if limit >= len(self):
            return np.arange(len(self))
        return np.sort(np.random.default_rng(seed).choice(len(self), size=limit, replace=False))

    @property
    def groups(self) -> dict[str, list[int]]:
        """Group -> its row numbers, in order of first appearance; rows without a group are in none."""
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(self._rows):
            if row.group is not None:
                groups.setdefault(row.group, []).append(number)
        return groups

    @property
    def clusters(self) -> np.ndarray:
        """Numbers ``[prompt]`` of what is drawn together, equal where :attr:`cluster_names` are; others stand alone."""
        numbers: dict[str | int, int] = {}
        keys = [number if name is None else name for number, name in enumerate(self.cluster_names)]
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)

    @property
    def cluster_names(self) -> list[str | None]:
        """What each row is drawn with: its group; without one, the rows that give the model (nearly) the same to
        read; None: it stands alone. A prompt that stands there twice, also with other case, spaces or punctuation, says
        the same thing twice, which is no second observation.
        """
        first: dict[str, int] = {}
        keys = [row.said if row.group is None else None for row in self._rows]
        places = [None if key is None else first.setdefault(key, number) for number, key in enumerate(keys)]
        often = Counter(places)
        return [
            row.group if place is None else f"repeats of prompt {place}" if often[place] > 1 else None
            for row, place in zip(self._rows, places, strict=True)
        ]

    @property
    def labels(self) -> list[Any]:
        """The label of every row (None where it has none)."""
        return [row.label for row in self._rows]

    @property
    def contrasts(self) -> Prompts:
        """The counterpart of every row. Raises :class:`UserError` where one is missing."""
        contrasts: list[Prompt] = []
        for number, row in enumerate(self._rows):
            if (other := row.counterpart) is None:
                raise UserError(f"Prompt {number} has no 'contrast'; every row needs one for a contrast pair.")
            contrasts.append(other)
        return Prompts(contrasts)

    @property
    def hash(self) -> str:
        """sha256 of the content of all rows in order; no file name or column order enters."""
        digest = hashlib.sha256(b"tunescope prompts 1\n")
        for row in self._rows:
            digest.update(_SORTED.encode(row.as_dict()).encode("utf-8") + b"\n")
        return digest.hexdigest()

    def frame(self) -> pd.DataFrame:
        """One row per prompt; the columns that some row has, ours first."""
        import pandas as pd

        dicts = [row.as_dict() for row in self._rows]
        extra = dict.fromkeys(name for row in dicts for name in row if name not in FIELDS)
        names = [name for name in FIELDS if any(name in row for row in dicts)] + list(extra)
        return pd.DataFrame({name: [row.get(name) for row in dicts] for name in names})

    def save(self, path: str | Path) -> Path:
        """Write JSONL, whole or not at all; loading it gives equal prompts. Returns the path."""
        target = Path(path)
        if target.suffix.lower() != ".jsonl":
            raise UserError(f"Prompts are saved as .jsonl; {target.name} has another ending.")
        write_text(target, "".join(_AS_GIVEN.encode(row.as_dict()) + "\n" for row in self._rows))
        return target

    def __repr__(self) -> str:
        if not self._rows:
            return "Prompts(0 rows)"
        first = str(self._rows[0])
        shown = first if len(first) <= 60 else first[:59] + "…"
        return f"Prompts({len(self)} rows, first: {shown!r})"

    def _repr_html_(self) -> str:
        more = [f"The first {SHOWN}:"] if len(self) > SHOWN else []
        return card(f"{len(self)} prompts", table=self[:SHOWN].frame(), notes=more)
