"""``tunescope report``: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = """
Example, offline:

  tunescope report runs/first --open
"""


def report(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name in the home.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: <run>-report.html beside the run.")] = None,
    home: Annotated[
        Path | None, typer.Option(help="The folder of the runs; default: $TUNESCOPE_RUNS or ./runs.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Write a run as one self-contained HTML file that opens offline."""
    from dashboards.report import write_report
    from tunescope.cli.output import emit
    from workbench.runs.places import place_of_run

    written = write_report(place_of_run(run, home), out)
    payload = {"report": str(written), "MB": round(written.stat().st_size / 1e6, 2)}
    emit(payload, as_json)
    if show:
        typer.launch(written.resolve().as_uri())


report.__doc__ = f"{report.__doc__}\n\n\b{EXAMPLE}"
