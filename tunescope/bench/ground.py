"""What probes are scored on: an organism loaded beside its base, and how one probe's run becomes lines of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.organisms import Organism

WHERE = "where tuning happened"
CAN = "what can carry the task"
BASE_TWICE = "base against base"
ALARM = 0.05
"""A cell with a q-value up to this is reported."""


@dataclass(frozen=True)
class Verdict:
    """One number about one result, beside what a blind guess would score and the bar it should reach."""

    measure: str
    value: float
    chance: float = np.nan
    at_least: float = np.nan
    at_most: float = np.nan
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One probe on one organism.

    ``run`` takes a pair (the organism's, or its base beside itself) and returns the result; ``judge`` compares it with
    the truth. ``own``: whether the truth that was planted is about the question that this probe asks.
    """

    probe: str
    question: str
    run: Callable[[Any], Any]
    judge: Callable[[Any], Iterable[Verdict]]
    own: bool = True
    cells: Callable[[Any], pd.DataFrame] = field(default=lambda result: result.frame())
    null: str = BASE_TWICE
    """What stands in for "nothing to find"; empty where the probe reads one model and no difference."""
    nothing: Callable[[], Any] | None = None
    """Runs the probe where nothing is to be found, if ``null`` is not the base beside itself."""
    variant: str = ""


@dataclass(frozen=True)
class Refused:
    """A probe's own words that there is nothing it could measure, where that may be the right answer."""

    words: str


def or_refused(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``run``, with a refusal as a result."""

    def tried(pair: Any) -> Any:
        try:
            return run(pair)
        except UserError as error:
            return Refused(str(error))

    return tried


class Ground:
    """An organism of one seed, its pairs loaded when they are first asked for."""

    def __init__(self, organism: Organism) -> None:
        self.organism, self.truth, self.seed = organism, organism.truth, organism.seed
        self.results: dict[str, Any] = {}
        """Results that later cases compare."""

    @cached_property
    def pair(self) -> Any:
        """Base and tuned."""
        return load_pair(self.organism.base, self.organism.tuned, device="cpu")

    @cached_property
    def null(self) -> Any:
        """The base beside itself."""
        return load_pair(self.organism.base, self.organism.base, device="cpu")

    def variant(self, name: str) -> Any:
        """Base and a further tuned model."""
        return load_pair(self.organism.base, self.organism.variants[name], device="cpu")

    def rows(self, count: int, split: str = "train", **wanted: Any) -> list[dict[str, Any]]:
        """The first rows of a split whose columns have the wanted values."""
        matching = [row for row in self.organism.splits[split] if all(row[k] == v for k, v in wanted.items())]
        return matching[:count]

    @property
    def first_layer(self) -> int:
        """The first layer that tuning could change."""
        return min(int(name.split("layers.")[1].split(".")[0]) for name in self.truth.modules)

    def scored(self, case: Case) -> list[dict[str, Any]]:
        """Run a case on the pair, then on nothing, and judge: lines of the benchmark's table."""
        pair = self.variant(case.variant) if case.variant else self.pair
        started = time.perf_counter()
        result = case.run(pair)
        seconds = time.perf_counter() - started
        forward, backward = (
            (np.nan, np.nan)
            if isinstance(result, Refused)
            else (result.provenance.forward_passes, result.provenance.backward_passes)
        )
        shared = {
            "organism": self.organism.name + (f" ({case.variant})" if case.variant else ""), "seed": self.seed,
            "probe": case.probe, "question": case.question, "own": case.own,
        }  # fmt: skip
        spent = {
            "forward": forward, "backward": backward, "seconds": round(seconds, 2), **self._alarms(case),
        }  # fmt: skip
        return [{**shared, **_line(verdict), **spent} for verdict in case.judge(result)]

    def _alarms(self, case: Case) -> dict[str, Any]:
        if not case.null:
            return {"null": "", "null_cells": 0, "null_alarms": 0}
        result = or_refused(lambda null: case.run(null) if case.nothing is None else case.nothing())(self.null)
        if isinstance(result, Refused):
            return {"null": f"{case.null}: refused", "null_cells": 0, "null_alarms": 0}
        cells = case.cells(result)
        q = cells["q"].to_numpy(np.float64)
        return {"null": case.null, "null_cells": int(np.isfinite(q).sum()), "null_alarms": int((q <= ALARM).sum())}


def _line(verdict: Verdict) -> dict[str, Any]:
    low, high = verdict.at_least, verdict.at_most
    bar = f">= {low:g}" if np.isfinite(low) else f"<= {high:g}" if np.isfinite(high) else ""
    reached = (verdict.value >= low) if np.isfinite(low) else (verdict.value <= high) if bar else None
    return {
        "measure": verdict.measure, "value": float(verdict.value), "chance": float(verdict.chance), "bar": bar,
        "reached": None if reached is None else bool(reached), "note": verdict.note,
    }  # fmt: skip


def precision(
    table: pd.DataFrame, planted: Sequence[tuple[Any, ...]], keys: Sequence[str], at_least: float = np.nan
) -> Verdict:
    """Precision at k of a sorted table, k = the number of planted cells; a tie at the k-th place counts by its share,
    as a draw among the tied cells would on average."""
    k, wanted = len(planted), set(planted)
    names = [tuple(row) for row in table[list(keys)].itertuples(index=False)]
    scores = table["score"].to_numpy(np.float64)
    edge = np.sort(scores)[::-1][k - 1]
    above = [name for name, score in zip(names, scores, strict=True) if score > edge]
    tied = [name for name, score in zip(names, scores, strict=True) if score == edge]
    hits = len(wanted & {*above}) + len(wanted & {*tied}) * (k - len(above)) / len(tied)
    return Verdict(f"precision at {k}", hits / k, k / len(names), at_least)


def labels_of(names: Iterable[str], kind: str) -> list[tuple[int, int]]:
    """``L1H2`` (kind H) or ``L1E2`` (kind E) as (layer, number)."""
    return [(int(name[1 : name.index(kind)]), int(name[name.index(kind) + 1 :])) for name in names]


def inside(mask: Mapping[str, Any], planted: Mapping[str, Any]) -> float:
    """The share of a graft's entries that lie in the planted region."""
    import torch

    hits = total = 0
    for name, region_mask in mask.items():
        places = region_mask if region_mask.dtype == torch.int64 else region_mask.reshape(-1).nonzero()[:, 0]
        region = planted.get(name)
        total += len(places)
        hits += 0 if region is None else int(region.reshape(-1)[places].sum())
    return hits / max(1, total)
