"""Whether the pair that is shown has experts to look at."""

from __future__ import annotations

from dashboards.selection import current, pairs_of
from dashboards.state import Opened
from tunescope.experiments.requirements import are_dense
from workbench.errors import UserError


def has_experts() -> bool:
    """False where the models' folders say that both are dense and no result is about an expert."""
    selection = current()
    return "expert" in selection.sizes or not are_dense(*_pair(selection.base, selection.tuned))


def _pair(base: str, tuned: str) -> tuple[str, str]:
    """The selected pair; before anything is selected, the one that the dashboard was opened on."""
    opened = Opened.from_environment()
    if base or opened.run is None:
        return (base, tuned) if base else (opened.base, opened.tuned)
    try:
        pairs = list(pairs_of(opened.run).values())
    except UserError:
        return "", ""
    return (pairs[0].base, pairs[0].tuned) if len(pairs) == 1 else ("", "")
