"""The headline numbers of a run: what it measured, each beside its interval and its control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.runs import Run

STORY = "tables/behaviour.parquet"
DIFFERENCE = "difference.parquet"
_SHARES = {"behaviour", "base", "tuned", "recipe", "steered", "control", "n"}


@dataclass(frozen=True)
class Card:
    """One number to be seen first."""

    title: str
    value: str
    note: str


def cards(run: Run, pair: str) -> list[Card]:
    """At most three cards, from the tables that the run ended with."""
    for name, read in ((STORY, _story), (DIFFERENCE, _difference)):
        if name in run.manifest.files:
            shown = list(read(run.read_table(name.removesuffix(".parquet")), pair))
            if shown:
                return shown[:3]
    return []


def _story(table: pd.DataFrame, pair: str) -> Iterator[Card]:
    """Behaviours of the pair, each once, with the first recipe that was tried."""
    if not set(table) >= _SHARES:
        return
    rows = table[table["organism"] == pair] if pair and "organism" in table else table
    for _, row in rows.drop_duplicates("behaviour").iterrows():
        yield Card(
            str(row["behaviour"]),
            f"{_percent(row['base'])} → {_percent(row['tuned'])}",
            f"base → tuned {_interval(row, 'tuned')}. With {row['recipe']}: {_percent(row['steered'])} "
            f"{_interval(row, 'steered')}, random stand-ins {_percent(row['control'])}. n = {int(row['n'])} prompts.",
        )


def _difference(table: pd.DataFrame, _pair: str) -> Iterator[Card]:
    if not set(table) >= {"site", "relative", "n"}:
        return
    for _, row in table.iterrows():
        yield Card(
            str(row["site"]), f"{row['relative']:.2g} × base",
            f"root mean square change of the activation, in units of the base's own. n = {int(row['n'])} rows.",
        )  # fmt: skip


def _percent(share: Any) -> str:
    return f"{100 * float(share):.0f} %"


def _interval(row: pd.Series, name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if low is None or high is None else f"[{100 * float(low):.0f}, {100 * float(high):.0f}]"
