"""Overview: what a run found, section by section."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboards import panels, selection
from dashboards.report.content import Content, Section, read_content
from workbench.runs import Run


def show() -> None:
    """The page."""
    st.title("Overview")
    chosen = selection.current()
    if chosen.folder is None:
        panels.empty("There is no run yet. This trains two small models and looks into them:", "tunescope demo")
        return
    with panels.told():
        _show_run(chosen.opened())


def _show_run(run: Run) -> None:
    manifest = run.manifest
    st.caption(f"A {panels.words(manifest.kind)} run, {manifest.state}. {panels.words(run.path)}")
    if manifest.state != "complete":
        st.warning(f"This run is {manifest.state}, not complete. {panels.words(manifest.error or '')}")
    if (
        any(name.endswith(".parquet") and "/" not in name for name in manifest.files)
        or "sections.json" in manifest.files
    ):
        content = read_content(run.path)
        for number, section in enumerate(content.sections):
            _show_section(content, section, f"{number}", run.path)
    else:
        panels.empty("This run holds no table. This makes one of a pair:", "tunescope localize weights BASE TUNED")
    with st.expander("What made this run", icon=":material/receipt_long:"):
        st.json({"config": manifest.config, "provenance": manifest.provenance}, expanded=2)


def _show_section(content: Content, section: Section, place: str, folder: Path) -> None:
    st.header(panels.words(section.title))
    for paragraph in section.paragraphs:
        st.text(panels.visible(paragraph))
    provenance = {
        "run": content.name,
        **content.manifest.model_dump(by_alias=True, include={"kind", "config", "provenance"}),
    }
    start = "from dashboards.report.content import read_content\n\n"
    start += f"section = read_content({str(folder)!r}).sections[{place}]\n"
    for name, drawn in section.figures.items():
        panels.figure(f"figure-{place}-{name}", drawn, f"{start}section.figures[{name!r}].show()", provenance)
    for name, frame in section.tables.items():
        st.subheader(panels.words(name.replace("_", " ")))
        panels.table(f"table-{place}-{name}", frame, f"{start}section.tables[{name!r}]", provenance)


show()
