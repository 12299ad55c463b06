"""The app: ``tunescope dashboard`` serves this file."""

from __future__ import annotations

import streamlit as st

st.set_page_config(page_title="Tunescope", page_icon=":material/tune:", layout="wide")
st.navigation(
    [
        st.Page(
            "app_pages/overview.py", title="Overview", icon=":material/dashboard:", url_path="overview", default=True
        ),
        st.Page("app_pages/steer.py", title="Steer", icon=":material/tune:", url_path="steer"),
        st.Page("app_pages/runs.py", title="Runs", icon=":material/folder:", url_path="runs"),
    ]
).run()
