"""``tunescope record``: both models on the same prompts, into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope.cli.dry_run import DryRun, Limit, say_cost
from tunescope.cli.reading_options import OwnGenerationConfig, Raw, System, Template, pair_reading, turns
from tunescope.cli.where_it_runs import EngineSettings, Executor, Workers, placement

EXAMPLE = """
Example, offline:

  tunescope record ./base ./tuned --prompts prompts.jsonl --sites z,resid_post --positions last --out runs/first
"""


def record(  # noqa: PLR0913 (one parameter per option)
    base: Annotated[str, typer.Argument(help="The base model: a folder or a hub id (org/name@revision).")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model, or a PEFT adapter of the base.")],
    prompts: Annotated[Path, typer.Option(help="Prompts: .jsonl, .json, .csv, .parquet or .txt (one per line).")],
    sites: Annotated[str, typer.Option(help="Sites, by commas: resid_post, z, router, pattern, …")] = "resid_post,z",
    layers: Annotated[str | None, typer.Option(help="Layers, by commas: indices or fractions of depth (0.5).")] = None,
    positions: Annotated[
        str, typer.Option(help="Which tokens: last, all, prompt, generated, -1, prompt[-3:], …")
    ] = "last",
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in ./runs.")] = None,
    statistics: Annotated[bool, typer.Option("--statistics", help="Keep means and variances only.")] = False,
    new_tokens: Annotated[int, typer.Option(help="Let the tuned model continue each prompt by this many tokens.")] = 0,
    batch_size: Annotated[str, typer.Option(help="Prompts per batch, or auto.")] = "auto",
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    raw: Raw = False,
    system: System = None,
    template: Template = "tuned",
    own_generation_config: OwnGenerationConfig = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    workers: Workers = None,
    executor: Executor = "local",
    engine_settings: EngineSettings = None,
    backend: Annotated[str, typer.Option(help="hooks, nnsight (traces), or ndif (with --device meta).")] = "hooks",
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Load .bin checkpoints.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code the model brings.")] = False,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Record activations of a base and its fine-tuned version on the same prompts, and print what differs most."""
    said, reading = turns(raw, system), pair_reading(template, own_generation_config)
    size: Any = batch_size if batch_size == "auto" else _number(batch_size, "--batch-size")
    from tunescope.experiments.requirements import check_paths, sample
    from workbench.prompts import Prompts

    check_paths(base=base, tuned=tuned, prompts=prompts)
    rows = Prompts.load(prompts, **said)
    rows = rows if limit is None else sample(rows, limit, seed)
    if dry_run:
        stored = "means and variances" if statistics else f"{positions} tokens"
        say_cost(
            "record", len(rows), f"both models read {len(rows)} prompts once; {stored} of {sites} are kept", as_json
        )
        return
    from tunescope.cli.output import emit, progress_bar, say_differences
    from workbench.recording.job import record_run

    where = placement(workers, executor, engine_settings)
    with where.ready(), progress_bar() as progress:
        run, recording, differences = record_run(
            base, tuned, rows,
            sites=[name.strip() for name in sites.split(",") if name.strip()],
            layers=None if layers is None else [part.strip() for part in layers.split(",")],
            positions=positions, out=out, statistics=statistics, new_tokens=new_tokens,
            batch_size=size, device=device, dtype=dtype, progress=progress,
            flags={"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code, **reading},
            where={"backend": backend, **where.of_a_recording()},
        )  # fmt: skip
    say_differences(run.read_json("pair")["differences"])
    payload = {
        "run": str(run.path), "rows": len(recording), "prompts": recording.n_prompts, "sites": recording.sites,
        "nonfinite": [list(flag) for flag in recording.nonfinite], "difference": differences.to_dict("records"),
    }  # fmt: skip
    emit(payload, as_json, differences.head(20), title=f"{run.path}: mean difference, tuned - base")


record.__doc__ = f"{record.__doc__}\n\n\b{EXAMPLE}"


def _number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor auto.", param_hint=option) from None
