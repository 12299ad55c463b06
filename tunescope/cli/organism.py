"""``tunescope organism list|build|show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="An organism, as in  tunescope organism list.")]
Seed = Annotated[int, typer.Option(help="Seed of data, weights and training.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Where they live; default: $TUNESCOPE_CACHE or ~/.cache/tunescope/organisms."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]


@app.command("list")
def list_command(seed: Seed = 0, cache: Cache = None, as_json: AsJson = False) -> None:
    """List the models with planted truth, small and real, and which of them are built.

    Example, offline:  tunescope organism list
    """
    from tunescope.cli.output import emit
    from workbench import organisms

    lines = [
        {
            "name": name,
            "summary": organisms.summary(name),
            "built": (folder := organisms.location(name, seed, cache)).is_dir(),
            "folder": str(folder),
        }
        for name in (*organisms.names(), *organisms.real_names())
    ]
    emit({"seed": seed, "organisms": lines}, as_json, lines)


@app.command("build")
def build_command(name: Name, seed: Seed = 0, cache: Cache = None, as_json: AsJson = False) -> None:
    """Train an organism's base and tuned model, or find them in the cache.

    A training is a run: one that was killed is listed by  tunescope runs list, and the same command goes on with it.

    Example, offline:  tunescope organism build context-knob
    """
    from tunescope.cli.output import emit, progress_bar
    from workbench import organisms, runs

    if organisms.location(name, seed, cache).is_dir():
        organism = organisms.build(name, seed, cache)
    else:
        config = {"verb": "organism build", "name": name, "seed": seed, "cache": str(cache) if cache else None}
        with runs.begun("organism", config) as run, progress_bar() as progress:
            organism = organisms.build(name, seed, cache, progress)
            run.write_text("organism.json", json.dumps(organism.to_json(), indent=2) + "\n")
    bars = [
        {"bar": bar.what, "value": bar.value, "at least": bar.at_least, "at most": bar.at_most} for bar in organism.bars
    ]
    emit(organism.to_json(), as_json, bars, title=f"{organism.name} in {organism.folder}")


@app.command("show")
def show_command(name: Name, seed: Seed = 0, cache: Cache = None, as_json: AsJson = False) -> None:
    """Show a built organism: its folders, its planted truth, its rows and what training reached.

    Example, offline:  tunescope organism show context-knob --json
    """
    from tunescope.cli.output import emit
    from workbench import organisms
    from workbench.errors import UserError

    folder = organisms.location(name, seed, cache)
    if not folder.is_dir():
        raise UserError(f"Organism {name!r} with seed {seed} is not built; run  tunescope organism build {name}.")
    manifest: dict[str, Any] = organisms.build(name, seed, cache).to_json()
    emit(manifest, as_json, title=name)
