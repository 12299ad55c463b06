"""Whether the pair that is shown has experts to look at."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboards.selection import current, pairs_of
from dashboards.state import Opened, known_runs
from tunescope.experiments.requirements import are_dense
from workbench.errors import UserError


def has_experts(*models: str) -> bool:
    """False where the models' folders say that all are dense and no result of the selection is about an expert.

    Args:
        models: Folders, hub ids or organisms' names; without them, the pair that the sidebar shows.
    """
    selection = current()
    return "expert" in selection.sizes or not are_dense(*(models or _pair(selection.base, selection.tuned)))


def _pair(base: str, tuned: str) -> tuple[str, str]:
    """The selected pair; before anything is selected, the one that the dashboard or the link opens."""
    opened = Opened.from_environment()
    if base or opened.base:
        return (base, tuned) if base else (opened.base, opened.tuned)
    folder = opened.run or _first_run()
    try:
        pairs = [] if folder is None else list(pairs_of(folder).values())
    except UserError:
        return "", ""
    return (pairs[0].base, pairs[0].tuned) if len(pairs) == 1 else ("", "")


def _first_run() -> Path | None:
    """The run that a link names, else the first that the sidebar offers."""
    known = known_runs()
    return known.get(st.query_params.get("run", "")) or next(iter(known.values()), None)
