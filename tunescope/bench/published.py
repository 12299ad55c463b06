"""Orders of methods that papers publish, beside what was measured: the first table of ``benchmarks/outside.md``."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

HEAD = (
    "Methods that a paper puts in an order, by neighbours, as the tables below have them. *Holds*: the better one's "
    "interval lies above the other's; *reversed*: below it; *undecided*: they overlap, or one has a single seed. "
    "Intervals are those of the tables: 95 % over programs, or the least and the most of the seeds."
)


class Order(NamedTuple):
    """Methods of one question, the best first as published."""

    kind: str
    question: str
    column: str
    """The column of the table that says the question; empty where there is one question."""
    measure: str
    methods: tuple[str, ...]
    source: str


_COMPONENT, _TRACR, _MIB = "which component was replaced", "Hanna et al. 2024", "Mueller et al. 2025"
ORDERS = (
    Order("tracr", _COMPONENT, "question", "precision",
          ("patching, same inputs", "integrated gradients, same inputs", "attribution, same inputs", "random"), _TRACR),
    Order("tracr", "which components are in the circuit", "question", "precision",
          ("patching, exact", "patching, ig", "patching, attribution"), _TRACR),
    Order("tracr", "which edges are in the circuit", "question", "auroc",
          ("edge patching, exact", "EAP-IG", "EAP", "random"), _TRACR),
    Order("tracr", "which edge is in the base alone", "question", "auroc",
          ("edge patching, exact", "EAP-IG", "random"), _TRACR),
    Order("mib", "ioi", "task", "cpr", ("EAP-IG", "EAP", "random"), _MIB),
    Order("mib", "arithmetic", "task", "cpr", ("EAP-IG", "EAP", "random"), _MIB),
    Order("ravel", "one attribute of a city", "", "disentangle",
          ("multi-task DAS", "DAS", "principal components"), "Huang et al. 2024"),
)  # fmt: skip


def section_table(text: str, kind: str) -> pd.DataFrame:
    """The table of a bench's section of the document, its bounds as columns ``x_low`` and ``x_high``.

    Args:
        text: The document.
        kind: tracr, mib or ravel.

    Returns:
        The table, empty where the document has no such section.
    """
    section = text.partition(f"<!-- {kind} -->")[2].partition(f"<!-- /{kind} -->")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    if not lines:
        return pd.DataFrame()
    return pd.DataFrame([_read(dict(zip(lines[0], line, strict=True))) for line in lines[2:]])


def _read(row: dict[str, str]) -> dict[str, float | str]:
    cells: dict[str, float | str] = {}
    for name, cell in row.items():
        number = re.fullmatch(r"(-?[\d.e+-]+)(?: \[(.+), (.+)\])?", cell)
        if number is None:
            cells[name] = cell
            continue
        cells[name] = float(number[1])
        cells[f"{name}_low"], cells[f"{name}_high"] = float(number[2] or number[1]), float(number[3] or number[1])
    return cells


def compared(text: str) -> pd.DataFrame:
    """Every pair of neighbours in a published order that the document has measured: suite, question, measure, better,
    worse (as published, with what was measured), source and verdict."""
    rows = []
    for order in ORDERS:
        table = section_table(text, order.kind)
        if not {"method", order.measure, order.column or "method"} <= set(table):
            continue
        own = table[table[order.column] == order.question] if order.column else table
        by_method = own.set_index("method")
        methods = [name for name in order.methods if name in by_method.index]
        bounded = [f"{order.measure}{end}" for end in ("", "_low", "_high")]
        for better, worse in pairwise(methods):
            first, other = (_Measured(*by_method.loc[name, bounded].astype(float)) for name in (better, worse))
            repeated = "seeds" not in table or by_method.loc[[better, worse], "seeds"].min() > 1
            verdict = first.beside(other) if repeated else "undecided"
            rows.append({
                "suite": order.kind, "question": order.question, "measure": order.measure,
                "better, as published": f"{better}: {first}", "worse": f"{worse}: {other}", "verdict": verdict,
                "source": order.source,
            })  # fmt: skip
    return pd.DataFrame(rows)


class _Measured(NamedTuple):
    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = "" if self.low == self.high else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.estimate:.3g}{bounds}"

    def beside(self, worse: _Measured) -> str:
        """What the two intervals say of the order."""
        if self.low > worse.high:
            return "holds"
        return "reversed" if self.high < worse.low else "undecided"
