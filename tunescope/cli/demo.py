"""``tunescope demo``: a real model, then of small ones with planted truth, with numbers measured here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tunescope.demo.real_model import RealDemo
    from tunescope.demo.small_models import DemoResult

EXAMPLE = """
Example, offline:

  tunescope demo --open
"""


def demo(
    seed: Annotated[int, typer.Option(help="Seed of organisms, splits, draws and intervals.")] = 0,
    home: Annotated[
        Path | None, typer.Option(help="The folder of the runs; default: $TUNESCOPE_RUNS or ./runs.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Random draws of every control.", min=10)] = 10,
    real: Annotated[bool, typer.Option(help="Show the real model first, where SmolLM2 is installed.")] = True,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """What tuning changed in a real chat model, where, and switched off; then the same on two small models whose truth
    is known, trained here (once)."""
    from dashboards.report import write_report
    from tunescope.cli.output import progress_bar
    from tunescope.demo.chapter import Settings
    from tunescope.demo.real_model import show_real
    from tunescope.demo.small_models import run_demo

    with progress_bar() as bar:
        first = show_real(home, seed, bar, _say) if real else None
    if first is not None and not as_json:
        _print_real(first)
    with progress_bar() as bar:
        result = run_demo(Settings(seed=seed, draws=draws), home, bar, _say)
    report = write_report(result.run.path)
    if as_json:
        _print_json(result, report, first)
    else:
        _print_result(result, report)
    if show:
        typer.launch(report.resolve().as_uri())


demo.__doc__ = f"{demo.__doc__}\n\n\b{EXAMPLE}"


def _print_real(result: RealDemo) -> None:
    """Answers side by side, what was found, and what else the recipe moved."""
    from tunescope.cli.output import command_name, emit

    emit(None, False, result.answers(), title="A real chat model and its fine-tune: what they answer")
    for step, sentence in result.said:
        typer.echo(f"{step:14} {sentence}")
    if left := result.held_out():
        emit(None, False, _held_out_lines(left), title=_TITLE.format(result.look.behaviour))
    typer.echo(f"Run:      {result.run.path}\nExplore:  {command_name()} dashboard {result.run.path}\n")
    typer.echo("How you know that it tells the truth: the same on small models in which the change was planted.\n")


_TITLE = "{} switched off, on held-out questions, and what else moved (KL on the others, nats per token)"


def _held_out_lines(left: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of a found direction, narrow enough for a terminal."""
    return [
        {
            "model": line["model"],
            "share": f"{line['behaviour']:.0%} [{line['low']:.0%}, {line['high']:.0%}]",
            "KL from tuned": f"{line['kl_tuned']:.2g} [{line['kl_tuned_low']:.2g}, {line['kl_tuned_high']:.2g}]",
            "names subject": f"{line['subject']:.0%}",
            "n": f"{line['n']} + {line['n_other']}",
            **({"perplexity": f"{line['perplexity']:.1f}"} if "perplexity" in line else {}),
        }
        for line in left
    ]


def _print_json(result: DemoResult, report: Path, real: RealDemo | None) -> None:
    from tunescope.cli.output import emit

    payload: dict[str, Any] = {
        "run": str(result.run.path), "report": str(report), "behaviour": result.behaviour, "truth": result.truth,
        "real": None if real is None else {
            "run": str(real.run.path), "behaviour": real.look.behaviour, "held_out": real.held_out(),
            "steps": [{"step": step, "found": sentence} for step, sentence in real.said],
        },
        "seconds": round(result.seconds, 1), "cpu_seconds": round(result.cpu_seconds, 1),
    }  # fmt: skip
    emit(payload, as_json=True)


def _print_result(result: DemoResult, report: Path) -> None:
    from tunescope.cli.output import command_name, emit
    from tunescope.demo.comparing import for_people

    title = "Share of held-out prompts, % [95 % interval]: base, tuned, and with the recipe beside random stand-ins"
    emit(None, False, for_people(result.behaviour), title=title)
    for kind, lines in result.behaviour.groupby("control is", sort=False):
        recipes = ", ".join(dict.fromkeys(name.removesuffix(", in the base") for name in lines["recipe"]))
        typer.echo(f"  control of {recipes}: {lines['draws'].iloc[0]} x {kind}")
    typer.echo("")
    emit(None, False, result.truth, title="Found against planted")
    _say(f"done in {result.seconds:.0f} s ({result.cpu_seconds:.0f} s of processor time)")
    typer.echo(f"Run:     {result.run.path}\nReport:  {report}\n")
    typer.echo(f"Open it:  {command_name()} report {result.run.path} --open")
    typer.echo(f"Explore:  {command_name()} dashboard {result.run.path}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
