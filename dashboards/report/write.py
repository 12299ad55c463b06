"""``write_report``: a run's folder in, one HTML file out."""

from __future__ import annotations

from pathlib import Path

from dashboards.report.content import read_content
from dashboards.report.page import render
from workbench.files import write_text

REPORT = "report.html"


def write_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the run in ``run_folder`` to ``out`` and return its path.

    Without ``out`` it lies beside the run, as ``<run>-report.html``: the run's own files stay as they were hashed. The
    file holds plotly's script and loads nothing, so it opens offline and can be sent to others. Raises
    :class:`workbench.errors.UserError` for a folder that is no run, or a damaged or newer one.
    """
    folder = Path(run_folder)
    content = read_content(folder)
    target = Path(out) if out is not None else folder.resolve().with_name(f"{content.name}-{REPORT}")
    write_text(target, render(content))
    return target
