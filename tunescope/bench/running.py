"""The benchmark: every case of the chosen organisms and seeds, kept in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import pandas as pd

from tunescope.bench.cases import CASES, MEASURED, cases_of
from tunescope.bench.ground import Ground
from workbench import organisms
from workbench.errors import UserError, unknown_name
from workbench.finished_batches import batch, scope
from workbench.method_index import index
from workbench.organisms.training import contained
from workbench.runs import Run

Say = Callable[[str], None]


def measure(names: Sequence[str], probes: Sequence[str], seeds: int, say: Say) -> pd.DataFrame:
    """One line per measure: organism, seed, probe, question, own, measure, value, chance, bar, reached, note, forward,
    backward (passes), seconds, null, null_cells, null_alarms.

    ``probes`` chooses methods, or the public functions behind them (empty: all). Raises :class:`UserError` for unknown
    names, before anything is trained.
    """
    for name in names:
        if name not in MEASURED:
            raise unknown_name("organism", name, MEASURED)
    methods = _methods(probes)
    lines: list[dict[str, Any]] = []
    for seed, name in product(range(seeds), names):
        with contained(seed), scope(lambda: "bench localization"):
            ground = Ground(organisms.build(name, seed))
            for case in cases_of(ground, methods):
                say(f"{name}, seed {seed}: {case.probe}")
                about = [ground.organism.folder.name, seed, case.probe, case.question, case.variant]
                lines += batch("case", about, partial(ground.scored, case))
    if not lines:
        raise UserError("There is nothing to measure: choose organisms, probes and at least one seed.")
    return pd.DataFrame(lines)


def _methods(probes: Sequence[str]) -> list[str]:
    """The keys of the table of cases that ``probes`` names."""
    functions = {entry.name: entry.function for entry in index().entries if entry.name in CASES}
    for name in probes:
        if name not in CASES and name not in functions.values():
            raise unknown_name("probe", name, sorted({*CASES, *functions.values()}))
    return [name for name in CASES if not probes or name in probes or functions.get(name) in probes]


def summarised(lines: pd.DataFrame) -> pd.DataFrame:
    """The same over seeds: mean value, its range (least, most), whether every seed reached the bar, sums of alarms."""
    keys = ["organism", "probe", "question", "measure"]
    of_seeds = lines.groupby(keys, sort=False, dropna=False)
    table = of_seeds.agg(
        own=("own", "first"), seeds=("seed", "nunique"), value=("value", "mean"), least=("value", "min"),
        most=("value", "max"), chance=("chance", "mean"), bar=("bar", "first"), reached=("reached", _all_reached),
        note=("note", "first"), forward=("forward", "mean"), backward=("backward", "mean"), seconds=("seconds", "mean"),
        null=("null", "first"), null_cells=("null_cells", "sum"), null_alarms=("null_alarms", "sum"),
    )  # fmt: skip
    return table.reset_index()


def _all_reached(reached: pd.Series) -> bool | None:
    known = reached.dropna()
    return bool(known.all()) if len(known) else None


def write_tables(run: Run, lines: pd.DataFrame) -> None:
    """The lines, their summary and the figure, into a run of kind ``localization``."""
    from workbench.figures.localization import localization_dots

    table = summarised(lines)
    text = (
        "Every probe on every organism, against what was planted there. Filled: the truth is about the question that "
        "the probe asks; hollow: it is about another one. Crosses: what a blind guess scores."
    )
    run.write_table("tables/lines", lines)
    run.write_table("tables/localization", table)
    run.write_text("figures/localization.json", localization_dots(table).to_json())
    section = {"title": "Localization", "text": text, "tables": ["localization"], "figures": ["localization"]}
    run.write_json("sections", [section])
