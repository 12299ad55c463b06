"""Overview: what changed, in one screen; below it, the run section by section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import panels, selection
from dashboards.as_experiment import stored_experiment
from dashboards.headline_cards import cards
from dashboards.mixtures import has_experts
from dashboards.readable_figures import from_zero
from dashboards.report.content import Content, Section, read_content
from dashboards.selection import Selection, pairs_of, picks
from dashboards.state import recipes_of
from dashboards.views.sentence import sentence_of
from dashboards.views.source import experiment_of
from workbench.runs import Run
from workbench.tables import with_intervals

_PAGES = {
    "tokens": ("Tokens", "text_fields"),
    "heads": ("Heads", "grid_on"),
    "skills": ("Skills", "scatter_plot"),
    "experts": ("Experts", "account_tree"),
    "knobs": ("Knobs", "tune"),
    "steer": ("Steer", "play_circle"),
}

_SHOWN = 6


def show() -> None:
    """The page."""
    selected = selection.current()
    st.title("What changed")
    if selected.folder is None:
        if selected.base:
            st.page_link("app_pages/look.py", label="Look into your pair, in four steps", icon=":material/footprint:")
            return
        panels.empty("There is no run yet. This trains two small models and looks into them:", "tunescope demo")
        st.page_link("app_pages/record.py", label="Or record a pair of your own", icon=":material/fiber_manual_record:")
        return
    with panels.errors_shown():
        _show_run(selected, selected.opened())


def _show_run(selected: Selection, run: Run) -> None:
    manifest = run.manifest
    about = f" of {panels.words(selected.pair)}" if selected.pair else ""
    st.caption(f"A {panels.words(manifest.kind)} run{about}, {manifest.state}. {panels.words(run.path)}")
    if manifest.state != "complete":
        st.warning(f"This run is {manifest.state}, not complete. {panels.words(manifest.error or '')}")
    _show_cards(selected, run)
    _show_links()
    _show_recipes(run)
    _show_findings(selected, run)
    if _has_tables(run):
        st.header("The whole run")
        content = read_content(run.path)
        others = tuple(f"{name}:" for name in pairs_of(run.path) if name != selected.pair)
        for number, section in enumerate(content.sections):
            if not section.title.startswith(others):
                _show_section(content, section, f"{number}", selected)
    elif not selected.results():
        panels.empty("This run holds no table. This makes one of a pair:", "tunescope localize weights BASE TUNED")
    with st.expander("What made this run", icon=":material/receipt_long:"):
        st.json({"config": manifest.config, "provenance": manifest.provenance}, expanded=2)


def _show_cards(selected: Selection, run: Run) -> None:
    drawn = cards(run, selected.pair)
    for place, card in zip(st.columns(len(drawn) or 1), drawn, strict=False):
        with place, st.container(border=True, height="stretch"):
            st.markdown(f"**{panels.words(card.title)}**")
            st.metric(panels.words(card.title), panels.visible(card.value), label_visibility="collapsed")
            st.caption(panels.words(card.note))


def _show_links() -> None:
    here = Path(__file__).parent
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.markdown("Look closer:")
        for name, (label, icon) in _PAGES.items():
            if (here / f"{name}.py").is_file() and (name != "experts" or has_experts()):
                st.page_link(f"app_pages/{name}.py", label=label, icon=f":material/{icon}:")


def _show_recipes(run: Run) -> None:
    """A button for each recipe that was made on a model of the run: it opens the page on which it acts."""
    pairs = {model: name for name, pair in pairs_of(run.path).items() for model in (pair.base, pair.tuned) if model}
    recipes = [(file, pairs[note.model]) for file, note in recipes_of(run.path).items() if note.model in pairs]
    if not recipes:
        return
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.markdown("Try it, live:")
        for file, pair in recipes[:_SHOWN]:
            recipe = Path(file).stem
            several = len(set(pairs.values())) > 1
            st.page_link(
                "app_pages/steer.py", label=panels.words(f"{recipe} · {pair}" if several else recipe),
                icon=":material/play_arrow:",
                query_params={"run": run.name, "recipe": recipe, **({"pair": pair} if several else {})},
            )  # fmt: skip


def _show_findings(selected: Selection, run: Run) -> None:
    """Needs model code for reading the results, so it comes after what can be shown at once."""
    stored = selected.results()
    if not stored:
        return
    results: dict[str, Any] = {}
    for result in stored:
        with panels.errors_shown():
            results[result.name] = result.load()
    for result in stored:
        if result.kind == "WeightDelta" and result.name in results:
            st.markdown(f"**{panels.words(sentence_of(results[result.name].frame()))}**")
            drawn = from_zero(results[result.name].figure())
            drawn.update_xaxes(tickangle=-30)
            panels.figure(
                "weights", drawn, result.python + "result.figure().show()\n", result.provenance(),
                frame=results[result.name].frame(), on_pick=picks("layer"),
                experiment=experiment_of(selected, [result]),
            )  # fmt: skip
            st.caption("Grey: no more than its control, the same change spread evenly over the layer's weights.")
            break
    from probes.headlines import headlines

    table = headlines(results)
    if table.empty:  # comparisons and recordings, which stand below in full
        return
    st.subheader("What the probes found")
    code = "from probes.headlines import headlines\nfrom workbench.results import Result\n\nheadlines({\n"
    code += "".join(f"    {result.name!r}: Result.load({str(result.path)!r}),\n" for result in stored) + "})\n"
    made = {"run": run.name, "results": {result.file: result.sha256 for result in stored}}
    panels.table("findings", table, code, made, shown=with_intervals(table), experiment=experiment_of(selected, stored))
    st.caption(
        "beyond control: further from 0 than the control, and q below .05; where there is no q, the control outside "
        "the interval."
    )


def _has_tables(run: Run) -> bool:
    files = run.manifest.files
    return "sections.json" in files or any(name.endswith(".parquet") and "/" not in name for name in files)


def _show_section(content: Content, section: Section, place: str, selected: Selection) -> None:
    """Closed sections are not drawn: a run may hold many figures."""
    opened = st.expander(panels.words(section.title), expanded=place == "0", on_change="rerun", key=f"section-{place}")
    if not opened.open:
        return

    def again() -> str:
        return stored_experiment(selected)  # a section may show several results: the whole run

    with opened:
        for paragraph in section.paragraphs:
            st.text(panels.visible(paragraph))
        provenance = {
            "run": content.name,
            **content.manifest.model_dump(by_alias=True, include={"kind", "config", "provenance"}),
        }
        start = "from dashboards.report.content import read_content\n\n"
        start += f"section = read_content({str(selected.folder)!r}).sections[{place}]\n"
        for name, drawn in section.figures.items():
            code = f"{start}section.figures[{name!r}].show()"
            panels.figure(f"figure-{place}-{name}", drawn, code, provenance, experiment=again)
        for name, frame in section.tables.items():
            st.markdown(f"**{panels.words(name.replace('_', ' '))}**")
            code = f"{start}section.tables[{name!r}]"
            shown = with_intervals(frame.dropna(axis=1, how="all"))
            panels.table(f"table-{place}-{name}", frame, code, provenance, shown=shown, experiment=again)


show()
