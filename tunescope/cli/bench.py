"""``tunescope bench``: measure what Tunescope's methods find, against what is known to be there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure the methods against known answers.")


@app.callback()
def _bench() -> None:
    """Measure the methods against known answers."""


@app.command("localization")
def localization(
    organisms: Annotated[str | None, typer.Option(help="Organisms, by commas; default: all with cases.")] = None,
    probes: Annotated[str | None, typer.Option(help="Probes, by commas (weight_delta,patching); default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N - 1; each trains its own organisms.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in ./runs.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Every probe on every organism: what it finds of what was planted, its false alarms, and its cost.

    Trains the organisms on first use. Killed, the same command goes on behind the last finished probe.

    Example: tunescope bench localization --organisms two-skills --probes graft
    """
    from tunescope.bench.cases import MEASURED
    from tunescope.bench.markdown import write_markdown
    from tunescope.bench.running import measure, summarised, write_tables
    from tunescope.cli.output import emit
    from workbench.runs import begun

    names, wanted = _split(organisms) or list(MEASURED), _split(probes)
    config = {"verb": "bench localization", "organisms": names, "probes": wanted, "seeds": seeds}
    with begun("localization", config, out) as run:
        lines = measure(names, wanted, seeds, _say)
        write_tables(run, lines)
    if markdown is not None:
        write_markdown(run, markdown, _hardware())
    table = summarised(lines)
    columns = ["organism", "probe", "measure", "value", "chance", "bar", "reached", "seconds", "null_alarms"]
    emit({"run": str(run.path), "rows": table}, as_json, table[columns], title=f"{run.path}: found against planted")


def _split(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _hardware() -> str:
    import os
    import platform

    return f"one core of a {os.cpu_count()}-core {platform.machine()} CPU that other work shared"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
