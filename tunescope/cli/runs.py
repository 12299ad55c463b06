"""``tunescope runs list|show|verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workbench.runs import Verification

app = typer.Typer(no_args_is_help=True)

Home = Annotated[
    Path | None, typer.Option("--home", help="The folder of the runs; default: $TUNESCOPE_RUNS or ./runs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]


@app.command("list")
def list_command(home: Home = None, as_json: AsJson = False) -> None:
    """List the runs, the latest first.

    Example, offline:  tunescope runs list --home ./runs
    """
    from tunescope.cli.output import emit
    from workbench import runs
    from workbench.cards import counted

    _check_home(home)
    listed = runs.list(home)
    table = [
        {
            "run": run.name,
            "kind": run.kind,
            "state": run.state,
            "MB": run.size / 1e6,
            "modified (UTC)": f"{run.modified:%Y-%m-%d %H:%M}",
            "problem": run.problem,
        }
        for run in listed
    ]
    place = home or runs.default_home()
    emit({"home": str(place), "runs": listed}, as_json, table, title=f"{counted(len(listed), 'run')} in {place}")


def _check_home(home: Path | None) -> None:
    """A home that was named is there; the default one is made by the first run."""
    from workbench.errors import UserError

    if home is not None and not home.is_dir():
        raise UserError(f"There is no folder {home}: give the folder that holds runs, or leave --home out.")


@app.command("show")
def show_command(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name in the home.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run is: its configuration, what made it, its files.

    Example, offline:  tunescope runs show runs/first
    """
    from tunescope.cli.output import emit
    from workbench import runs
    from workbench.runs.places import place_of_run

    opened = runs.open(place_of_run(run, home))
    manifest = opened.manifest.model_dump(by_alias=True)
    lines = {
        "run": str(opened.path),
        **{name: manifest[name] for name in ("kind", "state", "error") if manifest[name] is not None},
        **{f"config.{name}": value for name, value in manifest["config"].items()},
        **{f"provenance.{name}": value for name, value in manifest["provenance"].items()},
        **{name: f"{entry['size']} bytes" for name, entry in manifest["files"].items()},
    }
    if as_json:
        emit({"path": str(opened.path), **manifest}, as_json)
    else:
        emit(lines, as_json)


@app.command("verify")
def verify_command(
    run: Annotated[list[str] | None, typer.Argument(help="Runs: folders, or names in the home; default: all.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Hash every file again and name what is missing, changed or foreign. Exit code 1 when anything is.

    Example, offline:  tunescope runs verify runs/first
    """
    from tunescope.cli.output import emit
    from workbench import runs
    from workbench.errors import UserError
    from workbench.runs.places import place_of_run

    _check_home(home)
    places = [place_of_run(name, home) for name in run] if run else [listed.path for listed in runs.list(home)]
    verified, unreadable = [], []
    for place in places:
        try:
            verified.append(runs.verify(place))
        except UserError as error:
            if run:
                raise
            unreadable.append({"run": str(place), "found": "unreadable", "file": str(error)})
    ok = all(verification.ok for verification in verified) and not unreadable
    lines = [
        {"run": failure["run"], "ok": False, "state": "unreadable", "problem": failure["file"]}
        for failure in unreadable
    ]
    emit(
        {"ok": ok, "runs": [_record(verification) for verification in verified] + lines},
        as_json,
        _table(verified) + unreadable,
    )
    if not ok:
        raise typer.Exit(1)


def _record(verification: Verification) -> dict[str, Any]:
    lists = {name: list(getattr(verification, name)) for name in ("missing", "changed", "foreign")}
    return {
        "run": str(verification.path),
        "ok": verification.ok,
        "state": verification.state,
        "checked": verification.checked,
        **lists,
    }


def _table(verified: list[Verification]) -> list[dict[str, Any]]:
    """One line per file that is wrong, or one that says all is well."""
    from workbench.cards import counted

    lines = []
    for verification in verified:
        wrong = [(what, name) for what in ("missing", "changed", "foreign") for name in getattr(verification, what)]
        if verification.state != "complete":
            wrong.insert(0, (verification.state, "the run itself"))
        fine = [("ok", f"{counted(verification.checked, 'file')}, unchanged")] if verification.ok else []
        lines += [{"run": str(verification.path), "found": what, "file": name} for what, name in wrong + fine]
    return lines
