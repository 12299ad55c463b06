"""``tunescope diff``: base, tuned and tuned under recipes, in numbers and texts, into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope.cli.dry_run import DryRun, Limit, say_cost
from tunescope.cli.reading_options import OwnGenerationConfig, Raw, System, Template, pair_reading, turns
from tunescope.cli.where_it_runs import EngineSettings, Executor, Workers, placement

EXAMPLE = """
Examples, offline:

  tunescope diff ./base ./tuned --prompts p.jsonl --neutral texts.txt --samples 3 --out runs/first-diff

  tunescope diff ./base ./tuned --prompts p.jsonl --recipe knob.safetensors --strengths -1,0,0.5,1,2

  tunescope diff ./base ./tuned --prompts p.jsonl --metric "begins:I am sorry" --metric "contains:policy"
"""


def diff(  # noqa: PLR0913 (one parameter per option)
    base: Annotated[str, typer.Argument(help="The base model: a folder or a hub id (org/name@revision).")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model, or a PEFT adapter of the base.")],
    prompts: Annotated[Path, typer.Option(help="Prompts: .jsonl, .json, .csv, .parquet or .txt (one per line).")],
    recipe: Annotated[
        list[Path] | None, typer.Option(help="A recipe file, or a line of the book's names; several are fine.")
    ] = None,
    on: Annotated[str, typer.Option(help="Which side the recipes are applied to: tuned, or base.")] = "tuned",
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, by commas; default: those that the prompts allow. 'all' for all.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="One more metric, or a behaviour that scores texts: 'begins:I am sorry', 'contains:...', 'regex:...', "
            "length, readability, language; may be given several times."
        ),
    ] = None,
    neutral: Annotated[Path | None, typer.Option(help="Neutral texts for perplexity, one per prompt.")] = None,
    samples: Annotated[int, typer.Option(help="Sampled texts per prompt beside the greedy one.", min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per text.", min=1)] = 32,
    strengths: Annotated[str | None, typer.Option(help="Follow every recipe over these strengths, by commas.")] = None,
    follow: Annotated[str | None, typer.Option(help="The metric that is followed; default: the first.")] = None,
    near: Annotated[Path | None, typer.Option(help="Prompts near the recipes' scope, for the scope panel.")] = None,
    outside: Annotated[Path | None, typer.Option(help="Prompts out of scope, for the scope panel.")] = None,
    changed: Annotated[
        str, typer.Option(help="What a change is: next_token, text, refusal, 'contains:...', …")
    ] = "next_token",
    split: Annotated[str | None, typer.Option(help="Divide the prompts: known (by the base) or sure.")] = None,
    draws: Annotated[int, typer.Option(help="Random recipes per control; 0: no control.", min=0)] = 10,
    batch_size: Annotated[int, typer.Option(help="Prompts per batch.", min=1)] = 32,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Seed of samples, draws and intervals.")] = 0,
    raw: Raw = False,
    system: System = None,
    template: Template = "tuned",
    own_generation_config: OwnGenerationConfig = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    workers: Workers = None,
    executor: Executor = "local",
    engine_settings: EngineSettings = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Load .bin checkpoints.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code the model brings.")] = False,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in ./runs.")] = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Compare what base, tuned and steered models do on the same prompts, each number with its interval."""
    _check_use(on, changed, split, draws)
    followed = None if strengths is None else _numbers(strengths)
    if (near or outside or strengths) and not recipe:
        raise typer.BadParameter("this looks at recipes: give --recipe.", param_hint="--strengths, --near, --outside")
    from tunescope.experiments.requirements import check_paths

    check_paths(base=base, tuned=tuned, prompts=prompts)
    where = placement(workers, executor, engine_settings)
    from tunescope.cli.diff_files import cost_of, read_files
    from tunescope.cli.diff_run import DiffRequest, compare
    from tunescope.cli.output import command_name, emit, progress_bar

    request = DiffRequest(
        base=base, tuned=tuned, prompts=prompts, recipes=tuple(recipe or ()), on=on, metrics=metrics,
        behaviours=tuple(metric or ()), neutral=neutral, samples=samples, max_new_tokens=max_new_tokens,
        strengths=followed, follow=follow, near=near, outside=outside,
        changed=changed, split=split, draws=draws, batch_size=batch_size, limit=limit, seed=seed,
        device=device, dtype=dtype,
        allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, **turns(raw, system),
        **pair_reading(template, own_generation_config),
    )  # fmt: skip
    if dry_run:
        files = read_files(request)
        say_cost("diff", len(files.rows), cost_of(request, files), as_json)
        return
    with progress_bar() as bar:
        run, comparison = compare(request, out, bar, where)
    if as_json:
        emit({"run": str(run.path), **comparison.payload()}, as_json=True)
        return
    for title, table in comparison.printed():
        emit(None, False, table, title=title)
    typer.echo(f"{comparison.title()}\nOpen it:  {command_name()} report {run.path} --open")


diff.__doc__ = f"{diff.__doc__}\n\n\b{EXAMPLE}"


def _check_use(on: str, changed: str, split: str | None, draws: int) -> None:
    if on not in ("tuned", "base"):
        raise typer.BadParameter(f"{on!r} is neither tuned nor base.", param_hint="--on")
    if changed not in ("next_token", "text", "refusal") and ":" not in changed:
        problem = "is none of next_token, text, refusal, and no behaviour such as 'contains:sorry'."
        raise typer.BadParameter(f"{changed!r} {problem}", param_hint="--changed")
    if split not in (None, "known", "sure"):
        raise typer.BadParameter(f"{split!r} is neither known nor sure.", param_hint="--split")
    if 0 < draws < 10:
        raise typer.BadParameter("a control needs at least 10 draws; 0 goes without.", param_hint="--draws")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers: Any = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers, such as -1,0,1.", param_hint="--strengths") from None
    return numbers
