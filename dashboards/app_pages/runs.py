"""Runs: all of them, and where the configurations of two differ."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.as_experiment import both_experiment, compared_experiment
from dashboards.model_names import short
from dashboards.results import StoredResult, results_in
from dashboards.selection import pairs_of
from dashboards.state import known_runs
from workbench import runs
from workbench.errors import UserError
from workbench.tables import with_intervals

_HASH = re.compile(r"[0-9a-f]{40,64}")


def _another(folder: Path) -> str:
    """A command that makes a second run, of the models of the first where it can be read."""
    try:
        named = [pair for pair in pairs_of(folder).values() if pair.base and pair.tuned]
    except UserError:
        named = []
    models = [named[0].base, named[0].tuned] if named else ["BASE", "TUNED"]
    return panels.visible(shlex.join(["tunescope", "localize", "weights", *models]))


def show() -> None:
    """The page."""
    st.title("Runs")
    known = known_runs()
    if not known:
        panels.empty("There is no run yet. This makes the first:", "tunescope demo")
        return
    panels.table(
        "runs", listing(known), "from workbench import runs\n\nruns.list()", {"home": str(runs.default_home())}
    )
    st.header("Compare two")
    if len(known) < 2:
        panels.empty("There is only one run. This makes another:", _another(next(iter(known.values()))))
        return
    names = list(known)
    left, right = st.columns(2)
    first = left.selectbox("First run", names, key="first", bind="query-params", format_func=panels.visible)
    two = right.selectbox("Second run", names, index=1, key="second", bind="query-params", format_func=panels.visible)
    with panels.errors_shown():
        _show_settings(known, first, two)
    with panels.errors_shown():
        _show_results(known, first, two)


def _show_settings(known: dict[str, Path], first_name: str, two: str) -> None:
    st.subheader("Settings that differ")
    frame = differences(known[first_name], known[two])
    if frame.empty:
        st.success("Kind and configuration of these two runs are the same.", icon=":material/check:")
    else:
        opened = [f"runs.open({str(known[name])!r}).config" for name in (first_name, two)]
        code = "\n".join(["from workbench import runs", "", *opened])
        short = frame.map(lambda cell: f"{cell[:12]}…" if _HASH.fullmatch(cell) else cell)
        panels.table(
            "differences", frame, code, {"first": first_name, "second": two}, shown=short,
            experiment=lambda: both_experiment(known[first_name], known[two]),
        )  # fmt: skip


def _show_results(known: dict[str, Path], first_name: str, two: str) -> None:
    st.subheader("Results side by side")
    first, second = ({result.name: result for result in results_in(known[name])} for name in (first_name, two))
    kinds = {result.kind for result in second.values()}
    left, right = st.columns(2)
    mine = [name for name, result in first.items() if result.kind in kinds]
    if not mine:
        st.info("These two runs hold no result of the same kind.", icon=":material/info:")
        return
    shown = _first_that_pairs(first, second, mine)
    a = first[left.selectbox("Result of the first", mine, shown, key="first-result", format_func=panels.visible)]
    theirs = [name for name, result in second.items() if result.kind == a.kind]
    same = theirs.index(a.name) if a.name in theirs else 0
    b = second[right.selectbox("Result of the second", theirs, same, key="second-result", format_func=panels.visible)]
    from probes import compare
    from probes.headlines import beside

    try:
        frame = beside(a.load(), b.load())
    except UserError as error:
        st.info(panels.words(str(error)), icon=":material/info:")
        return
    try:
        st.caption(f"Agreement of the scores: {panels.words(compare(a.load(), b.load()).summary())}.")
    except UserError:
        st.caption("These scores cannot be ranked against each other.")
    code = (
        "from probes.headlines import beside\nfrom workbench.results import Result\n\n"
        f"beside(Result.load({str(a.path)!r}), Result.load({str(b.path)!r}))\n"
    )
    made = {"first": {"run": first_name, "sha256": a.sha256}, "second": {"run": two, "sha256": b.sha256}}
    panels.table(
        "beside", frame, code, made, shown=with_intervals(frame),
        experiment=lambda: compared_experiment((known[first_name], a), (known[two], b)),
    )  # fmt: skip


def _first_that_pairs(first: dict[str, StoredResult], second: dict[str, StoredResult], names: list[str]) -> int:
    """The place of the first result whose cells can be set beside those of one of its name and kind; else 0."""
    from probes.headlines import beside

    for place, name in enumerate(names):
        if name in second and second[name].kind == first[name].kind:
            with suppress(UserError):
                beside(first[name].load(), second[name].load())
                return place
    return 0


def listing(known: dict[str, Path]) -> pd.DataFrame:
    """A row per run, also for those that cannot be read."""
    entries = {entry.path.resolve(): entry for entry in runs.list()}
    rows = []
    for name, folder in known.items():
        entry = entries.get(folder.resolve()) or next(iter(runs.list(folder)), None)
        if entry is not None:
            rows.append(
                {
                    "run": name, "models": _models(folder), "kind": entry.kind, "state": entry.state,
                    "size (MB)": round(entry.size / 1e6, 2),
                    "modified (UTC)": f"{entry.modified:%Y-%m-%d %H:%M}", "problem": entry.problem or "",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _models(folder: Path) -> str:
    """The pairs that a run is about, in short; empty where it says none, or cannot be read."""
    with suppress(UserError):
        pairs = pairs_of(folder).values()
        return ", ".join(
            f"{short(pair.base, pair.tuned)} → {short(pair.tuned, pair.base)}"
            for pair in pairs
            if pair.base and pair.tuned
        )
    return ""


def differences(first_folder: Path, two: Path) -> pd.DataFrame:
    """Settings that differ, by dotted name; what both have alike is left out."""
    first, second = (runs.open(folder).manifest for folder in (first_folder, two))
    left, right = ({**_flat({"kind": run.kind}), **_flat(run.config)} for run in (first, second))
    return pd.DataFrame(
        [
            {"setting": name, "first": str(left.get(name, "-")), "second": str(right.get(name, "-"))}
            for name in sorted(left.keys() | right.keys())
            if left.get(name) != right.get(name)
        ],
        columns=["setting", "first", "second"],
    )


def _flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(_flat(value, f"{above}{name}.") if isinstance(value, dict) and value else {f"{above}{name}": value})
    return flat


show()
