"""``tunescope check``: may it ship? A contract's claims, each with verdict and interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = """
Example, offline (exit codes: 0 holds, 1 fails, 3 not enough evidence):

  tunescope check contract.yaml --badge contract.svg

A contract.yaml:

  base: ./base
  tuned: ./tuned
  prompts: {animals: animals.jsonl, others: others.jsonl}
  claims:
    - shows: {behaviour: refusal, prompts: animals, at_least: 0.95}
    - unchanged: {behaviour: refusal, prompts: others, within: 0.03}
    - keeps: facts
"""


def check(
    contract: Annotated[Path, typer.Argument(help="The contract's .yaml file.")],
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here, for CI.")] = None,
    badge: Annotated[Path | None, typer.Option(help="Write a badge (SVG) here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Check a tuned model against a contract: what it must do, and what it must have left alone."""
    from tunescope.cli.output import emit, progress_bar
    from tunescope.contracts.schema import Contract
    from workbench.errors import UserError

    for path in (junit, badge):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"There is no folder {path.parent} for {path.name}: make it, or name another.")
        if path is not None and path.is_dir():
            raise UserError(f"{path} is a folder: name a file in it.")
    terms = Contract.load(contract)
    from tunescope.contracts import checking, reports
    from workbench.cards import visible
    from workbench.files import write_text

    with progress_bar() as bar:
        checked = checking.check(terms, folder=contract.parent, progress=bar)
    if junit is not None:
        write_text(junit, reports.junit(checked))
    if badge is not None:
        write_text(badge, reports.badge(checked))
    if as_json:
        emit(checked.to_dict(), as_json=True)
    else:
        for claim, finding in checked.findings:
            typer.echo(f"{visible(claim.title)}\n    {reports.sentence(finding, terms.confidence)}")
        typer.echo(f"\nContract: {checked.verdict}.")
    raise typer.Exit(checked.exit_code)


check.__doc__ = f"{check.__doc__}\n\n\b{EXAMPLE}"
