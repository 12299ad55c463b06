"""``tunescope dashboard``: runs and live steering in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = """
Examples, offline:

  tunescope dashboard runs/first

  tunescope dashboard ./base ./tuned
"""


def dashboard(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN | BASE TUNED]", help="A run, or two models to steer.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8501,
    address: Annotated[str, typer.Option(help="Who may connect: this computer only, unless told.")] = "127.0.0.1",
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
) -> None:
    """Open runs and live steering in the browser, on this computer only."""
    names = what or []
    if len(names) > 2:
        raise typer.BadParameter("give nothing, a run, or a base and a tuned model.", param_hint="[RUN | BASE TUNED]")
    from dashboards.launch import launch
    from dashboards.state import Opened
    from workbench import runs
    from workbench.runs.places import place_of_run

    if len(names) == 1:
        folder: Path = place_of_run(names[0], None)
        runs.open(folder)
        opened = Opened(run=folder)
    else:
        opened = Opened(None, *names)
    raise typer.Exit(launch(opened, port, address, headless=headless))


dashboard.__doc__ = f"{dashboard.__doc__}\n\n\b{EXAMPLE}"
