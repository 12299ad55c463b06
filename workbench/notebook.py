"""What a Jupyter kernel needs before figures are drawn there: notebooks stay quiet, and keep their figures as HTML."""

from __future__ import annotations

import sys
import warnings

_JUPYTER = "plotly_mimetype"
"""What plotly takes by itself in Jupyter: figures that Jupyter alone draws, and ``nbconvert --to html`` leaves out."""


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel; imports nothing."""
    running = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(running, "kernel")


def stay_quiet() -> None:
    """No warning that a progress bar is drawn as text."""
    warnings.filterwarnings("ignore", message="IProgress not found", category=Warning)


def embed_figures() -> None:
    """Figures carry their HTML too, and the first one plotly's code; a renderer that somebody chose stays."""
    import plotly.io

    if plotly.io.renderers.default == _JUPYTER:
        plotly.io.renderers.default = f"{_JUPYTER}+notebook"
