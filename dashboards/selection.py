"""One selection - run, pair, layer, head, expert, prompt - that drives every page and lives in the URL.

The widgets stand in the sidebar, drawn by the entry file, so they stay while pages come and go; their values are query
parameters, so a link carries them. A click on a map writes the widgets (:func:`picks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import panels
from dashboards.results import Found, results_in
from dashboards.state import known_runs
from workbench import runs
from workbench.errors import UserError
from workbench.runs import Run

CELLS = ("layer", "head", "expert", "prompt")
_HELD = "_selection"


@dataclass(frozen=True)
class Selection:
    """What every page shows. Numbers are inside what the run holds; a run without maps has no limits."""

    run: str = ""
    """Its name; empty where there is no run."""
    folder: Path | None = None
    pair: str = ""
    """Which pair of the run, where it has several (the demo has two)."""
    base: str = ""
    """The base model as the run names it: a folder, a hub id, or empty."""
    tuned: str = ""
    layer: int = 0
    head: int = 0
    expert: int = 0
    prompt: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    """``layer``, ``head``, ``expert``, ``prompt`` -> how many there are, as far as the run's results know."""

    def opened(self) -> Run:
        """The run. Raises :class:`UserError` where there is none or it cannot be read."""
        if self.folder is None:
            raise UserError("There is no run to show; make one with  tunescope demo.")
        return runs.open(self.folder)

    def results(self, *kinds: str) -> list[Found]:
        """The run's results of these kinds (class names such as ``Patching``) for the selected pair."""
        if self.folder is None:
            return []
        return results_in(self.folder, *kinds, models=(self.base, self.tuned) if self.pair else None)


def current() -> Selection:
    """The selection that the sidebar holds in this run of the script."""
    return st.session_state.get(_HELD) or Selection()


def picks(*names: str) -> Callable[[list[Any]], None]:
    """For ``panels.figure(on_pick=...)``: a clicked cell's ``customdata`` goes to these, as in
    ``picks("layer", "head")``."""

    def pick(cell: list[Any]) -> None:
        for name, value in zip(names, cell, strict=False):
            st.session_state[name] = int(value)

    return pick


def sidebar() -> Selection:
    """Draw the selection's widgets; the entry file calls this before the page."""
    with st.sidebar:
        chosen = _choose()
    st.session_state[_HELD] = chosen
    return chosen


def _choose() -> Selection:
    known = known_runs()
    if not known:
        st.caption("No run yet.")
        return Selection()
    asked = st.query_params.get("run")
    name = st.selectbox("Run", list(known), key="run", bind="query-params", format_func=panels.visible)
    if asked is not None and asked not in known:
        st.warning(f"There is no run {panels.words(asked)} here; shown is {panels.words(name)}.")
    try:
        return _inside(name, known[name])
    except UserError:
        return Selection(name, known[name])  # the page that opens it says why


def _inside(name: str, folder: Path) -> Selection:
    pairs = pairs_of(folder)
    pair, models = "", next(iter(pairs.values()), ("", ""))
    if len(pairs) > 1:
        pair = st.selectbox("Pair", list(pairs), key="pair", bind="query-params", format_func=panels.visible)
        models = pairs[pair]
    sizes = _sizes(results_in(folder, models=models if pair else None))
    numbers = {}
    shown = [one for one in CELLS if sizes.get(one)]
    for place, one in zip(st.columns(2) * 2, shown, strict=False):
        with place:
            numbers[one] = _number(one)
    if shown:
        st.caption(" · ".join(f"{sizes[one]} {one}{'' if sizes[one] == 1 else 's'}" for one in shown) + ", from 0")
    for one, value in numbers.items():
        if value >= sizes[one]:
            numbers[one] = sizes[one] - 1
            st.warning(
                f"There is no {one} {value} here: {one}s go from 0 to {sizes[one] - 1}; shown is {sizes[one] - 1}."
            )
    return Selection(name, folder, pair, *models, **numbers, sizes=sizes)


def _number(name: str) -> int:
    """No upper bound: a link to a cell that is not there is told, not silently replaced."""
    return int(st.number_input(name.capitalize(), 0, None, 0, 1, key=name, bind="query-params"))


def _sizes(found: list[Found]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for one in found:
        for name, size in {**one.glance.sizes, "prompt": one.glance.n_prompts}.items():
            sizes[name] = max(sizes.get(name, 0), size)
    return sizes


def pairs_of(folder: Path) -> dict[str, tuple[str, str]]:
    """The pairs of models a run is about, by name: what its configuration says, else what its results say."""
    config = runs.open(folder).config
    several = config.get("organisms")
    if isinstance(several, dict):
        return {str(name): _both(models) for name, models in several.items()}
    if "base" in config and "tuned" in config:
        return {"pair": _both(config)}
    for one in results_in(folder):
        if "tuned" in one.glance.models:
            return {"pair": (one.glance.models.get("base", ""), one.glance.models["tuned"])}
    return {}


def _both(models: Any) -> tuple[str, str]:
    given = models if isinstance(models, dict) else {}
    names = [given.get(role) for role in ("base", "tuned")]
    base, tuned = (str(one.get("name", "") if isinstance(one, dict) else one or "") for one in names)
    return base, tuned
