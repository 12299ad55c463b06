"""The app: ``tunescope dashboard`` serves this file."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboards import job_strip, models, selection
from dashboards.mixtures import has_experts
from dashboards.state import first_page

PAGES = {
    "look": ("Four steps", "footprint"),
    "overview": ("Overview", "dashboard"),
    "tokens": ("Tokens", "text_fields"),
    "heads": ("Heads", "grid_on"),
    "skills": ("Skills", "scatter_plot"),
    "experts": ("Experts", "account_tree"),
    "knobs": ("Knobs and concepts", "tune"),
    "analyses": ("Analyses", "biotech"),
    "steer": ("Steer", "play_circle"),
    "record": ("Record a pair", "fiber_manual_record"),
    "runs": ("Runs", "folder"),
}
START = "start"
"""The path of the first page, which stands at the root: its own name stays for links from a server whose first page
is another."""
HERE = Path(__file__).parent / "app_pages"
_SHAPES = """<g stroke="#0b6e8f" stroke-width="3" stroke-linecap="round"><path d="M5 5v22M14 5v22M23 5v22"
 opacity=".35"/></g><g fill="#0b6e8f"><circle cx="5" cy="20" r="4"/><circle cx="14" cy="10" r="4"/>
<circle cx="23" cy="16" r="4"/></g>"""
_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="32" viewBox="0 0 {0} 32">{1}</svg>'
MARK = _SVG.format(28, _SHAPES)
LOGO = _SVG.format(
    188,
    f"""{_SHAPES}<text x="38" y="23" font-family="Source Sans, Source Sans Pro, Helvetica, Arial, sans-serif"
 font-size="21" font-weight="600" fill="#1f2a30">Tunescope</text>""",
)

STYLE = """[data-testid=stMainBlockContainer] { padding-top: 3.25rem; }
@media (max-width: 1200px) {
  [data-testid=stMainBlockContainer] { padding-left: 2rem; padding-right: 2rem; }
  [data-testid=stHorizontalBlock]:has(> [data-testid=stColumn]:nth-child(4)) { flex-wrap: wrap; }
  [data-testid=stHorizontalBlock]:has(> [data-testid=stColumn]:nth-child(4)) > [data-testid=stColumn] {
    min-width: calc(50% - 1rem); flex: 1 1 calc(50% - 1rem); }
  .st-key-chosen-place [data-testid=stHorizontalBlock], .st-key-kept [data-testid=stHorizontalBlock] {
    flex-wrap: wrap; }
  .st-key-chosen-place [data-testid=stColumn], .st-key-kept [data-testid=stColumn] { min-width: 100%; }
}"""
"""Narrow windows: less margin; rows of four stand two by two, and what stands beside a list below it, so that no number
is cut."""

st.set_page_config(page_title="Tunescope", page_icon=MARK, layout="wide")
first = first_page()
pages = [
    st.Page(
        f"app_pages/{name}.py", title=title, icon=f":material/{icon}:", default=name == first,
        url_path=START if name == first else name,
        visibility="hidden" if name == "experts" and not has_experts() else "visible",
    )
    for name, (title, icon) in PAGES.items()
    if (HERE / f"{name}.py").is_file()
]  # fmt: skip
title = PAGES[first][0]
pages.append(st.Page(f"app_pages/{first}.py", title=title, url_path=first, visibility="hidden"))
page = st.navigation(pages)
st.logo(LOGO, size="large")
st.html(f"<style>{STYLE}</style>")
selection.sidebar(page.url_path)
models.warm()
job_strip.show(page.url_path or first)
page.run()
