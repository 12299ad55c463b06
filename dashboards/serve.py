"""The app as a web server: Streamlit's own, with a content security policy on every answer."""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.starlette import App

from dashboards.content_policy import PolicyHeaders

app = App(Path(__file__).with_name("app.py"), middleware=[Middleware(PolicyHeaders)])
