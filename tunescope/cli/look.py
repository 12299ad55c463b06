"""``tunescope look``: the four steps on a pair of one's own, one screen of answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunescope.cli.dry_run import DryRun, say_cost

EXAMPLE = """
Example, offline:

  tunescope look ./base ./tuned --prompts p.jsonl --limit 24
"""


def look(  # noqa: PLR0913 (one parameter per option)
    base: Annotated[str, typer.Argument(help="The base model: a folder, a .gguf file or a hub id.")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model, or a PEFT adapter of the base.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Questions to ask both models; default: a shipped set of many topics.")
    ] = None,
    limit: Annotated[int, typer.Option(min=4, help="A seeded sample of at most so many prompts.")] = 60,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, auto: scores in bfloat16 come in steps.")] = (
        "float32"
    ),
    exact: Annotated[
        bool, typer.Option("--exact/--fast", help="Patch every head; else estimate them and patch the leading ones.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of samples, draws and intervals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in ./runs.")] = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """What changed, where, and how to turn it off: four steps with fast passes, each finding with its control."""
    from tunescope.experiments.requirements import check_paths, sample
    from workbench.prompts import Prompts

    check_paths(base=base, tuned=tuned, prompts=prompts)
    rows = None if prompts is None else sample(Prompts.load(prompts), limit, seed)
    if dry_run:
        from tunescope.look.cost import cost_of
        from tunescope.look.questions import general_questions

        n_prompts = len(sample(general_questions(), limit, seed) if rows is None else rows)
        say_cost("look", n_prompts, cost_of(n_prompts, exact=exact), as_json)
        return
    from tunescope.cli.output import command_name, emit, progress_bar, say_differences
    from tunescope.look.candidates import turning_recipes
    from tunescope.look.keep import keep
    from tunescope.look.questions import general_questions
    from tunescope.look.steps import Look, run_steps
    from workbench import runs
    from workbench.models.pair import load_pair
    from workbench.recording.load_options import load_options

    config = {
        "verb": "look", "base": base, "tuned": tuned, "prompts": None if prompts is None else str(prompts),
        "limit": limit, "seed": seed, **load_options({"device": device, "dtype": dtype}),
        **({"exact": True} if exact else {}),
    }  # fmt: skip
    with runs.begun("look", config, out) as run, progress_bar() as bar:
        pair = load_pair(base, tuned, device=device, dtype=dtype)
        say_differences(pair.differences.sentences())
        looked = Look(
            pair, sample(general_questions(), limit, seed) if rows is None else rows, base, tuned, seed, exact=exact
        )
        run_steps(looked, bar, lambda line: print_now(line, err=as_json))
        keep(looked, run)
    if as_json:
        steps = [
            {"step": step, "found": sentence} for step, note in looked.notes.items() for sentence in note.sentences
        ]
        recipes = [f"recipes/{name}.safetensors" for name in looked.recipes]
        emit({"run": str(run.path), "behaviour": looked.behaviour, "steps": steps, "recipes": recipes}, as_json=True)
        return
    typer.echo(f"\nRun:      {run.path}")
    turning = turning_recipes(looked)
    for name in turning[:1]:
        steer = f"{command_name()} steer {base} --tuned {tuned} --recipe {run.path}/recipes/{name}.safetensors"
        typer.echo(f"Turn it:  {steer} --prompt '...'")
    if turning[1:]:
        typer.echo(f"          or with another recipe there: {', '.join(turning[1:])}")
    typer.echo(f"Explore:  {command_name()} dashboard {run.path}")
    typer.echo(f"Report:   {command_name()} report {run.path} --open")


def print_now(line: str, *, err: bool) -> None:
    """A finding as soon as it is there, in a log file too."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{line}\n")
    stream.flush()


look.__doc__ = f"{look.__doc__}\n\n\b{EXAMPLE}"
