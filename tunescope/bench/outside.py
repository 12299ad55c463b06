"""Runs and documents of benches whose truth others made: Tracr, MIB, RAVEL."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tunescope.bench import published
from workbench.runs import Run

TITLES = {"tracr": "Tracr programs", "mib": "MIB, circuit track", "ravel": "RAVEL"}
SAYS = {
    "tracr": (
        "RASP programs compiled by Tracr (Lindner et al. 2023, Apache-2.0) and run as GPT-2 models with identity "
        "norms; in every layer two heads and four MLP units with random weights are decoys. *Which component was "
        "replaced*: a head or MLP of the tuned model writes another value, and a decoy of its layer has new weights "
        "too, so that weights alone cannot tell which matters. *Which components, edges are in the circuit*: the "
        "program alone, on texts and contrasts. *Which edge is in the base alone*: what a receiver reads of a sender "
        "is 0 in the tuned model. Precision at k, k = how many are right; area under the ROC curve; 95 % intervals "
        "over programs, all seeds of a program drawn together; *auroc of seeds*: the least and the most of the seeds' "
        "means. A seed draws decoys, texts and contrasts. Gradient methods miss most edges, for Tracr's MLPs are "
        "steps, flat almost everywhere, where a gradient is 0 whatever stands behind; patching edge by edge does not."
    ),
    "mib": (
        "CPR and CMD as the MIB benchmark's circuit track defines them (Mueller et al. 2025), by edges, over .1, .2, "
        ".5, 1, 2, 5, 10, 20, 50 and 100 % of them. Prompts are made by templates of ours, and the model is another "
        "one, so values are not comparable with the published ones; the order of methods is. Published: EAP-IG before "
        "EAP before random. Higher CPR and lower CMD are better. A seed draws the prompts; [least, most] of the seeds."
    ),
    "ravel": (
        "RAVEL's cities and prompts (Huang et al. 2024, MIT). A city's coordinates in a subspace of the residual "
        "stream at its last token are exchanged for another city's. Cause: the other's value of the attribute is said; "
        "Isolate: the own value of the other attributes; Disentangle: their mean. Removed, kept: the same when the "
        "coordinates are set to their mean. Cities and templates of the test were not fitted on. A subspace that does "
        "nothing has Cause 0, Isolate 1 and Disentangle .5, and a random one does nearly nothing; so do read Cause. "
        "Published order: multi-task DAS before DAS before principal components. A seed draws the split of the cities "
        "that the model knows, the pairs and the training; [least, most] of the seeds."
    ),
}


PUBLISHED_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "tracr": {"seeds": 3},
    "mib": {"prompts": 12, "seeds": 3},
    "ravel": {"attributes": "Country", "seeds": 3, "dtype": "bfloat16"},
}
"""Bench -> the options with which ``benchmarks/outside.md`` is written."""


def timed(make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines that ``make`` returns, each with its share of the processor seconds that they took together."""
    start = time.process_time()
    lines = make()
    share = (time.process_time() - start) / max(len(lines), 1)
    return [{**line, "seconds": share} for line in lines]


def measured_by(command: str, lines: pd.DataFrame, hardware: str) -> str:
    """The sentence of a section: the command that writes it, its seeds, and the processor time that it took."""
    seeds = ", ".join(map(str, sorted(lines["seed"].unique())))
    seconds = lines["seconds"].sum()
    took = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return f"Measured by `{command}`: seeds {seeds}; {took} of processor time, on {hardware}."


def command_line(kind: str, options: Mapping[str, Any]) -> str:
    """The command of a bench with these options; those that are None are left out.

    Example:
        ``command_line("mib", {"prompts": 12})`` is ``tunescope bench mib --prompts 12``
    """
    words = ["tunescope", "bench", kind]
    for name, value in options.items():
        option = [] if name == "model" else [f"--{name}"]  # a model is an argument
        words += [] if value is None else [*option, str(value)]
    return shlex.join(words)


def write_tables(run: Run, kind: str, lines: pd.DataFrame, table: pd.DataFrame) -> None:
    """The lines and their summary, into a run of kind ``bench-tracr`` and so on."""
    run.write_table("tables/lines", lines)
    run.write_table("tables/summary", table)
    run.write_json("sections", [{"title": TITLES[kind], "text": SAYS[kind], "tables": ["summary"]}])


def put_section(path: Path, kind: str, table: pd.DataFrame, note: str) -> None:
    """Write the bench's table into its section of ``path`` and what all sections say of published orders into the
    first one; leave the other sections as they are."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = HEAD + "".join(text.partition("\n<!-- ")[1:])
    text = _with_section(text, "orders", [f"## {ORDERS}", ""])
    text = _with_section(text, kind, [f"## {TITLES[kind]}", "", SAYS[kind], "", note, "", *table_lines(table)])
    orders = published.compared(text)
    said = table_lines(orders) if len(orders) else []
    text = _with_section(text, "orders", [f"## {ORDERS}", "", published.HEAD, "", *said])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _with_section(text: str, name: str, lines: list[str]) -> str:
    """The document with a section written anew, or at its end where it had none."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = "\n".join([start, *lines, end])
    if start not in text:
        return f"{text.rstrip()}\n\n{section}\n"
    before, _, rest = text.partition(start)
    return before + section + rest.partition(end)[2]


ORDERS = "Published orders"
HEAD = """# Against truths that others made

Written by `tunescope bench outside --markdown benchmarks/outside.md`, or a section by the command that it names and
`--markdown benchmarks/outside.md`; do not edit.
"""


def table_lines(table: pd.DataFrame) -> list[str]:
    """A table whose estimates carry their bounds: ``x``, ``x_low``, ``x_high`` (or least, most) become one column."""
    bounds = {name: pair for name in table for pair in (("low", "high"), ("least", "most"))
              if f"{name}_{pair[0]}" in table}  # fmt: skip
    hidden = {f"{name}_{end}" for name, pair in bounds.items() for end in pair}
    columns = [name for name in table if name not in hidden]
    lines = ["| " + " | ".join(map(str, columns)) + " |", "|" + " --- |" * len(columns)]
    for row in table.to_dict("records"):
        cells = []
        for name in columns:
            cell = _cell(row[name])
            if name in bounds:
                low, high = (row[f"{name}_{bound}"] for bound in bounds[name])
                cell += "" if pd.isna(low) or low == high else f" [{_cell(low)}, {_cell(high)}]"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
