"""The app: ``tunescope dashboard`` serves this file."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboards import models, selection

PAGES = {
    "overview": ("Overview", "dashboard"),
    "tokens": ("Tokens", "text_fields"),
    "heads": ("Heads", "grid_on"),
    "skills": ("Skills", "scatter_plot"),
    "experts": ("Experts", "account_tree"),
    "knobs": ("Knobs and concepts", "tune"),
    "steer": ("Steer", "play_circle"),
    "record": ("Record a pair", "fiber_manual_record"),
    "runs": ("Runs", "folder"),
}
HERE = Path(__file__).parent / "app_pages"

st.set_page_config(page_title="Tunescope", page_icon=":material/tune:", layout="wide")
page = st.navigation([
    st.Page(f"app_pages/{name}.py", title=title, icon=f":material/{icon}:", url_path=name, default=name == "overview")
    for name, (title, icon) in PAGES.items()
    if (HERE / f"{name}.py").is_file()
])  # fmt: skip
selection.sidebar()
page.run()
models.warm()
