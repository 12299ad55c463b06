"""``benchmarks/localization.md`` from a run: every number in it was measured in that run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from tunescope.bench.ground import BASE_TWICE
from workbench.runs import Run

HEAD = """# Localization benchmark

Written by `tunescope bench localization --seeds {seeds} --markdown benchmarks/localization.md`; do not edit.

Every probe on every organism (small models whose tuning is known by construction), scored on the question it asks:
`weight_delta` and cross-model patching ask where tuning happened, `head_selection` asks which heads can carry a task,
`path_patching`, `circuit` and `component_masking` ask which heads a variable needs, and so on. Precision at k takes
k = the number of planted cells; ties at the k-th place count by their share. *Chance* is what a blind guess (for
grafts, switches, knobs, circuits and masks: the random control) scores. Rows marked *other question* show what a probe
names where the truth is about something it does not ask; they have no bar. Patching on the *same inputs* puts into the
base what the tuned weights compute from the base's residual stream (*out*: into the tuned model what the base's weights
compute there, where each tuned part is needed and none alone is enough); *as it runs*, what the tuned run computed,
upstream changes included. Cost is of the probe with its control, in forward and backward passes of a batch; seconds
are wall time on {hardware}, and indicative only. *False alarms* counts cells with q <= .05 when the base stands in for
the tuned model, or, for probes that ask about one model, when what is named beside the count leaves nothing to find;
"refused" means that the probe said there is nothing to localize or to measure. Seeds: {seeds} (organisms are trained
anew for each); values are means, with [least, most] where seeds differ; heads and counts in a note are those of the
first seed.

{verdict}
"""


def write_markdown(run: Run, path: Path, hardware: str) -> None:
    """Write the document of a run. ``hardware``: what the seconds were measured on."""
    table, seeds = run.read_table("tables/localization"), int(run.config["seeds"])
    barred = table[table["bar"] != ""]
    missed = barred[~barred["reached"].astype(bool)]
    verdict = f"{len(barred) - len(missed)} of {len(barred)} bars are reached" + ("." if missed.empty else "; missed: ")
    verdict += "; ".join(f"{row.organism}, {row.probe}, {row.measure}" for row in missed.itertuples())
    parts = [HEAD.format(seeds=seeds, hardware=hardware, verdict=verdict)]
    parts += ["## Overview", "", *_overview(table), ""]
    for organism, rows in table.groupby("organism", sort=False):
        parts += [f"## {organism}", "", *_details(rows), ""]
    parts += ["## False alarms and cost", "", *_costs(table), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _overview(table: pd.DataFrame) -> list[str]:
    """Probe by organism: the first measure of each; in brackets where its question is another one."""
    first = table.groupby(["probe", "organism"], sort=False).first().reset_index()
    organisms = list(dict.fromkeys(table["organism"]))
    rows = []
    for probe, some in first.groupby("probe", sort=False):
        cells = {row["organism"]: _value(row) if row["own"] else f"({_value(row)})" for _, row in some.iterrows()}
        rows.append([f"`{probe}`", *(cells.get(name, "-") for name in organisms)])
    said = "The first measure of each; in brackets where the probe asks another question, `-` where it does not apply."
    return [said, "", *_grid(["probe", *organisms], rows)]


def _details(rows: pd.DataFrame) -> list[str]:
    lines = []
    for _, row in rows.iterrows():
        reached = "" if row["bar"] == "" else f"{row['bar']}: {'reached' if row['reached'] else '**missed**'}"
        question = row["question"] if row["own"] else f"{row['question']} *(other question)*"
        chance = "" if pd.isna(row["chance"]) else f"{row['chance']:.3g}"
        lines.append([f"`{row['probe']}`", question, row["measure"], _value(row), chance, reached, row["note"]])
    return _grid(["probe", "question", "measure", "value", "chance", "bar", "note"], lines)


def _costs(table: pd.DataFrame) -> list[str]:
    lines = []
    for (organism, probe, _), some in table.groupby(["organism", "probe", "question"], sort=False):
        row = some.iloc[0]
        refused = row["null_cells"] == 0
        alarms = (row["null"] or "-") if refused else f"{row['null_alarms']} of {row['null_cells']} cells"
        alarms += "" if refused or row["null"] == BASE_TWICE else f", {row['null']}"
        passes = ["-" if pd.isna(row[name]) else f"{row[name]:.0f}" for name in ("forward", "backward")]
        lines.append([organism, f"`{probe}`", *passes, f"{row['seconds']:.1f}", alarms])
    return _grid(["organism", "probe", "forward", "backward", "seconds", "false alarms"], lines)


def _value(row: Any) -> str:
    value, least, most = (f"{row[name]:.3g}" for name in ("value", "least", "most"))
    return value if least == most else f"{value} [{least}, {most}]"


def _grid(head: list[str], rows: Iterable[list[Any]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells]]
