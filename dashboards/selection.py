"""One selection - run, pair, layer, head, expert, prompt - that drives every page and lives in the URL.

The widgets stand in the sidebar, drawn by the entry file, so they stay while pages come and go; their values are query
parameters, so a link carries them. A click on a map writes the widgets (:func:`picks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import panels
from dashboards.results import StoredResult, results_in
from dashboards.state import Opened, known_runs, verified
from workbench import runs
from workbench.cells import AXES
from workbench.errors import UserError
from workbench.runs import Run
from workbench.runs.manifest import MANIFEST
from workbench.runs.places import whole_path
from workbench.runs.workspace import beside

if TYPE_CHECKING:
    from workbench.prompts import Prompts

CELLS = (*AXES, "prompt")
_HELD, _PAGE, _KINDS, _NEXT, _LINKED = "_selection", "_page", "_kinds", "_next-run", "_linked-cell"
FRESH = ""
"""Instead of a run: the pair that the dashboard was opened on, of which there is none yet."""
_UNNAMED = "pair"


@dataclass(frozen=True)
class PairOfRun:
    """Two models, and what a run keeps for them."""

    base: str
    """As the run names it: a folder, a hub id, or empty."""
    tuned: str
    prompts: str = ""
    """A file of prompts inside the run."""
    results: tuple[str, ...] = ()
    """The files of its results, where the run says which are whose."""

    @classmethod
    def of(cls, values: Any) -> PairOfRun:
        """From a run's manifest, which anybody may have written: what is not text is left out."""
        plain = values if isinstance(values, dict) else {}
        names = [plain.get(role) for role in ("base", "tuned")]
        base, tuned = (name.get("name") if isinstance(name, dict) else name for name in names)
        prompts, results = plain.get("prompts"), plain.get("results")
        return cls(
            base if isinstance(base, str) else "",
            tuned if isinstance(tuned, str) else "",
            prompts if isinstance(prompts, str) and prompts.startswith("prompts/") else "",
            tuple(str(result) for result in results) if isinstance(results, list) else (),
        )


@dataclass(frozen=True)
class Selection:
    """What every page shows. Numbers are inside what the run holds; a run without maps has no limits."""

    run: str = ""
    """Its name; empty where there is no run."""
    folder: Path | None = None
    pair: str = ""
    """Which pair of the run, where its pairs have names (the demo has two)."""
    base: str = ""
    """The base model as the run names it: a folder, a hub id, or empty."""
    tuned: str = ""
    layer: int = 0
    head: int = 0
    expert: int = 0
    prompt: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    """``layer``, ``head``, ``expert``, ``prompt`` -> how many there are, as far as the run's results know."""
    about: PairOfRun = field(default_factory=lambda: PairOfRun("", ""))
    """What the run keeps for the pair."""

    def opened(self) -> Run:
        """The run. Raises :class:`UserError` where there is none or it cannot be read."""
        if self.folder is None:
            raise UserError("There is no run to show; make one with  tunescope demo.")
        return runs.open(self.folder)

    def results(self, *kinds: str) -> list[StoredResult]:
        """The run's results of these kinds (class names such as ``Patching``) for the selected pair."""
        if self.folder is None:
            return []
        own = _results(self.folder, self.pair, self.about, *kinds)
        others = _of_other_runs(self.folder, own, *kinds)
        if self.pair:
            others = [result for result in others if set(result.glance.models.values()) <= {self.base, self.tuned}]
        return [*own, *others]

    def rows(self) -> Prompts | None:
        """The prompts that the run keeps for the pair; None where it keeps none."""
        if self.folder is None or not self.about.prompts:
            return None
        return _prompts(str(verified(self.opened(), self.about.prompts)))


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


def opened_on_a_cell() -> bool:
    """Whether the link that opened this tab names a layer or a head. Widgets take a 0 out of the address."""
    return bool(st.session_state.get(_LINKED))


def show_next(**values: str | int) -> None:
    """Select another run, layer, head or prompt the next time the page is drawn, as ``show_next(layer=2, head=3)``."""
    st.session_state[_NEXT] = values


def sidebar(page: str) -> Selection:
    """Draw the selection's widgets; the entry file calls this before the page."""
    st.session_state.setdefault(_LINKED, bool({"layer", "head"} & set(st.query_params.to_dict())))
    _drop_infinite()
    for name, value in st.session_state.pop(_NEXT, {}).items():
        st.session_state[name] = value
    _warn_of_nonsense()
    _follow_link(page)
    with st.sidebar:
        selection = _choose()
    st.session_state[_HELD] = selection
    return selection


def _follow_link(page: str) -> None:
    """A link from one page of the app to another sets what it names, also where this tab has another value already;
    widgets by themselves read the address only when they are new."""
    state = st.session_state
    came_from, state[_PAGE] = state.get(_PAGE), page
    kinds: dict[str, type] = state.setdefault(_KINDS, {})
    kinds.update({str(name): type(value) for name, value in state.items() if not str(name).startswith("_")})
    if came_from in (None, page):
        return
    for name, row in st.query_params.to_dict().items():
        value = _as(kinds.get(name), row)
        if value is not None and state.get(name) != value:
            state[name] = value


def _as(kind: type | None, text: str) -> object:
    """``text`` as a value of the kind that the tab had; None where it had none, or it is no such value."""
    try:
        if kind is bool:
            return text.lower() == "true"
        if kind is int:
            return max(0, int(text))
        if kind is float:
            return float(text)
    except ValueError:
        return None
    return text if kind in (str, type(None)) else None


def _drop_infinite() -> None:
    """A number in a link that is no finite one, which widgets of whole numbers stumble over, is left out."""
    wrong = [name for name, value in st.query_params.to_dict().items() if _infinite(value)]
    for name in wrong:
        del st.query_params[name]
    if wrong:
        st.rerun()


def _warn_of_nonsense() -> None:
    """A layer, head, expert or prompt in the link that is no number is told, before its widget takes 0 for it."""
    for name in CELLS:
        text = st.query_params.get(name)
        if text is not None and not text.isdecimal():
            st.warning(f"{panels.words(text)} is no number of a {name}: shown is {name} 0.")


def _infinite(text: str) -> bool:
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _choose() -> Selection:
    known, opened = known_runs(), Opened.from_environment()
    own = runs_about(opened)
    names = [*own, *(name for name in known if name not in own)] if own or not opened.base else [FRESH, *known]
    run_name = st.query_params.get("run")
    if run_name and run_name not in known:
        shown = names[0] if names and names[0] else "the pair that this dashboard was opened on"
        st.warning(f"There is no run {panels.words(run_name)} here; shown is {panels.words(shown)}.")
    if not known:
        st.caption("No run yet.")
        return Selection(base=opened.base, tuned=opened.tuned)
    _forget_unless("run", dict.fromkeys(names))
    name = st.selectbox("Run", names, key="run", bind="query-params", format_func=_run_label)
    if name == FRESH:
        return Selection(base=opened.base, tuned=opened.tuned)
    try:
        return _inside(name, known[name])
    except UserError:
        return Selection(name, known[name])  # the page that opens it says why


def _run_label(name: str) -> str:
    return panels.visible(name) if name else "(your pair: nothing recorded yet)"


def runs_about(opened: Opened) -> list[str]:
    """The runs about the pair that the dashboard was opened on: looks first, then the latest first."""
    return _names_about(opened, _home_stamp()) if opened.base else []


def _find_about(opened: Opened, stamp: float) -> list[str]:  # noqa: ARG001 (part of the cache's key)
    wanted = (whole_path(opened.base), whole_path(opened.tuned))
    about: dict[str, bool] = {}
    same: set[Path] = set()
    for name, folder in known_runs().items():
        try:
            pairs, is_look = pairs_of(folder).values(), runs.open(folder).manifest.kind == "look"
        except UserError:
            continue
        if any((whole_path(pair.base), whole_path(pair.tuned)) == wanted for pair in pairs):
            about[name] = is_look
            same = same or {folder.resolve(), *(path.resolve() for path in beside(folder))}
        elif folder.resolve() in same:
            about[name] = is_look
    return sorted(about, key=lambda name: not about[name])


_names_about = st.cache_data(max_entries=16, show_spinner=False)(_find_about)


def _inside(name: str, folder: Path) -> Selection:
    pairs = pairs_of(folder)
    pair, about = next(iter(pairs.items()), ("", PairOfRun("", "")))
    if pair == _UNNAMED:
        pair = ""
    if len(pairs) > 1:
        _forget_unless("pair", pairs)
        pair = st.selectbox("Pair", list(pairs), key="pair", bind="query-params", format_func=panels.visible)
        about = pairs[pair]
    sizes = _sizes(_results(folder, pair, about))
    if about.prompts:
        sizes["prompt"] = len(_prompts(str(verified(runs.open(folder), about.prompts))))
    numbers = {}
    shown = [cell for cell in CELLS if sizes.get(cell)]
    for place, kind in zip(st.columns(2) * 2, shown, strict=False):
        with place:
            numbers[kind] = _number(kind)
    if shown:
        st.caption(" · ".join(f"{sizes[kind]} {kind}{'' if sizes[kind] == 1 else 's'}" for kind in shown) + ", from 0")
    for kind, value in numbers.items():
        if value >= sizes[kind]:
            numbers[kind] = sizes[kind] - 1
            st.warning(
                f"There is no {kind} {value} here: {kind}s go from 0 to {sizes[kind] - 1}; shown is {sizes[kind] - 1}."
            )
    return Selection(name, folder, pair, about.base, about.tuned, **numbers, sizes=sizes, about=about)


def _forget_unless(name: str, options: dict[str, Any]) -> None:
    """A value that is no longer an option, after a link or a change of the run, gives way to the first."""
    if name in st.session_state and st.session_state[name] not in options:
        del st.session_state[name]


def _number(name: str) -> int:
    """No upper bound: a link to a cell that is not there is told, not silently replaced."""
    return int(st.number_input(name.capitalize(), 0, step=1, key=name, bind="query-params"))


def _sizes(results: list[StoredResult]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for result in results:
        for name, size in {**result.glance.sizes, "prompt": result.glance.n_prompts}.items():
            sizes[name] = max(sizes.get(name, 0), size)
    return sizes


def _results(folder: Path, pair: str, about: PairOfRun, *kinds: str) -> list[StoredResult]:
    """Those of the pair; a run whose pair has no name is all about it."""
    results = results_in(folder, *kinds)
    if about.results:
        return [result.called(pair) for result in results if result.file in about.results]
    if not pair:
        return results
    return [result for result in results if set(result.glance.models.values()) <= {about.base, about.tuned}]


def _of_other_runs(folder: Path, own: list[StoredResult], *kinds: str) -> list[StoredResult]:
    """What other runs found about the same weights: a pair is one workspace."""
    taken = {stored.sha256 for stored in own}
    others = []
    for place in _beside(str(folder), _home_stamp()):
        with panels.errors_shown():
            for result in results_in(place, *kinds):
                if result.sha256 not in taken:
                    others.append(replace(result, name=f"{result.name} ({place.name})", run=place))
    return others


def _found_beside(folder: str, stamp: float) -> list[Path]:  # noqa: ARG001 (part of the cache's key)
    return beside(Path(folder))


_beside = st.cache_data(max_entries=64, show_spinner=False)(_found_beside)


def _home_stamp() -> float:
    """Changes when a run comes, ends or goes."""
    home = runs.default_home()
    if not home.is_dir():
        return 0.0
    return home.stat().st_mtime + sum(_changed(folder / MANIFEST) for folder in home.iterdir())


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def pairs_of(folder: Path) -> dict[str, PairOfRun]:
    """The pairs of models a run is about, by name: what its manifest says, else what its results say."""
    manifest = runs.open(folder).manifest
    for several in (manifest.provenance.get("pairs"), manifest.config.get("organisms")):
        if isinstance(several, dict) and several:
            return {str(name): PairOfRun.of(models) for name, models in several.items()}
    if "base" in manifest.config and "tuned" in manifest.config:
        return {_UNNAMED: PairOfRun.of({role: manifest.config[role] for role in ("base", "tuned")})}
    for result in results_in(folder):
        if "tuned" in result.glance.models:
            return {_UNNAMED: PairOfRun.of(result.glance.models)}
    return {}


def pair_of(folder: Path, result: StoredResult) -> str:
    """Which pair of a run a result is about; empty where its pairs have no names."""
    named = (name for name, about in pairs_of(folder).items() if result.file in about.results)
    return next((name for name in named if name != _UNNAMED), "")


def _load_prompts(path: str) -> Prompts:
    from workbench.prompts import Prompts

    return Prompts.load(path)


_prompts = st.cache_data(max_entries=16, show_spinner=False)(_load_prompts)
