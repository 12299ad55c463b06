"""``tunescope audit``: what was this model tuned for? No prompts, no other model as a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunescope.cli.dry_run import DryRun, say_cost
from tunescope.cli.where_it_runs import EngineSettings, Executor, Workers, placement

EXAMPLE = """
Example, offline:

  tunescope audit ./base ./tuned --max-new-tokens 8
"""


def audit(  # noqa: PLR0913 (one parameter per option)
    base: Annotated[str, typer.Argument(help="The base model: a folder, a .gguf file or a hub id.")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model, or a PEFT adapter of the base.")],
    questions: Annotated[Path | None, typer.Option(help="Questions for both models; default: shipped ones.")] = None,
    limit: Annotated[int | None, typer.Option(min=4, help="A seeded sample of at most so many questions.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, auto.")] = "float32",
    fast: Annotated[
        bool, typer.Option("--fast/--exact", help="Leave out the views that run a model for every random direction.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of draws and intervals.")] = 0,
    workers: Workers = None,
    executor: Executor = "local",
    engine_settings: EngineSettings = None,
    training_rows: Annotated[Path | None, typer.Option(help="Does the tuned model recite one of these rows?")] = None,
    out: Annotated[Path | None, typer.Option(help="Save the result to this .safetensors file.")] = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """What a model was tuned for, from the pair alone: ranked hypotheses, each with its evidence and its prompts."""
    from tunescope.experiments.requirements import check_paths, sample

    check_paths(base=base, tuned=tuned, prompts=questions)
    check_paths(prompts=training_rows)
    from workbench.prompts import Prompts

    rows = None if questions is None else Prompts.load(questions)
    if limit is not None:
        from probes.audits.general import general_questions

        rows = sample(general_questions() if rows is None else rows, limit, seed)
    if dry_run:
        questions_read = "80 shipped questions" if rows is None else f"{len(rows)} questions"
        cost = f"both models write up to {max_new_tokens} tokens to {questions_read} and read 40 shipped texts twice"
        cost += "; a trait that rose is asked about again in up to 32 new prompts"
        cost += "" if fast else "; a patchscope and steered texts beside random directions"
        say_cost("audit", None if rows is None else len(rows), cost, as_json)
        return
    where = placement(workers, executor, engine_settings)
    import probes
    from tunescope.cli.output import emit, progress_bar, say_differences
    from tunescope.contracts.leakage import recited_rows
    from workbench.cards import visible
    from workbench.models.pair import load_pair

    with where.ready(), progress_bar() as bar:
        pair = load_pair(base, tuned, device=device, dtype=dtype)
        say_differences(pair.differences.sentences())
        with where.on(pair):
            draws = {"draws": 0} if fast else {}
            report = probes.audit(pair, questions=rows, max_new_tokens=max_new_tokens, seed=seed, progress=bar, **draws)
            recited = None if training_rows is None else recited_rows(pair, training_rows, bar)
    if out is not None:
        report.save(out)
    lines = report.hypotheses.to_dict("records")
    views = report.sentences()[len(lines) :]
    views += [] if recited is None else [f"Training rows: {recited.detail}."]
    if as_json:
        said = {"nothing": report.nothing, "confidence": report.confidence, "hypotheses": lines, "views": views}
        emit(said, as_json=True)
        return
    for line in lines:
        typer.echo(f"{line['rank']}. {visible(line['says'])}\n   {visible(line['evidence'])}")
        if line["prompts"]:
            typer.echo(f"   on: {visible(line['prompts'])}")
    typer.echo(f"   {report.confidence}")
    for view in views:
        typer.echo(f"-  {visible(view)}")


audit.__doc__ = f"{audit.__doc__}\n\n\b{EXAMPLE}"
