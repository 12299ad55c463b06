"""The verbs of ``tunescope``, one file each; none imports model code before it runs."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from tunescope.cli import (
    audit,
    bench,
    bench_audit,  # noqa: F401 (adds audit to bench)
    bench_outside,  # noqa: F401 (adds tracr, mib and ravel to bench)
    check,
    dashboard,
    demo,
    diff,
    env,
    experiment,
    localize,
    look,
    methods,
    organism,
    recipe,
    record,
    report,
    runs,
    serve,
    steer,
    terms,
)


class Interrupted(Exception):
    """Ctrl-C, which is the cause. Typer would make a silent exit of a KeyboardInterrupt."""


class _Verbs(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    cls=_Verbs,
    name="tunescope",
    help="See what fine-tuning changed in a transformer, find where it lives, and turn it up, down or off.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("audit")(audit.audit)
app.command("check")(check.check)
app.command("demo")(demo.demo)
app.command("dashboard")(dashboard.dashboard)
app.command("diff")(diff.diff)
app.command("look")(look.look)
app.command("methods")(methods.methods)
app.command("env")(env.env)
app.command("record")(record.record)
app.command("report")(report.report)
app.command("run")(experiment.run)
app.command("serve")(serve.serve)
app.command("steer")(steer.steer)
app.command("terms")(terms.terms)
app.add_typer(bench.app, name="bench", help="Measure the methods against known answers.")
app.add_typer(localize.app, name="localize", help="Find where the change lives; each verb writes a run.")
app.add_typer(localize.train, name="train", help="Train a model as a paper proposes; each verb writes a run.")
app.add_typer(localize.measure, name="measure", help="Compare what models do; each verb writes a run.")
app.add_typer(organism.app, name="organism", help="Small trained pairs with planted truth.")
app.add_typer(recipe.app, name="recipe", help="Show, check, export and certify recipes.")
app.add_typer(runs.app, name="runs", help="List, show and verify runs.")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from workbench import __version__

        typer.echo(f"tunescope {__version__}")
        raise typer.Exit
