"""``--dry-run`` and ``--limit`` of the verbs that no method of the registry makes."""

from __future__ import annotations

from typing import Annotated

import typer

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what it costs.")]
Limit = Annotated[int | None, typer.Option(min=1, help="A seeded sample of at most so many prompts.")]


def say_cost(verb: str, prompts: int | None, cost: str, as_json: bool) -> None:
    """Print what a dry run found: that nothing is missing, and what the verb costs.

    Args:
        verb: Its name.
        prompts: How many it reads; None where it brings its own.
        cost: What it computes, in a sentence without its full stop.
        as_json: JSON alone on stdout.
    """
    from tunescope.cli.output import emit

    payload = {"verb": verb, "prompts": prompts, "cost": cost}
    emit(payload, as_json, title=f"{verb}: nothing is missing, and nothing was run")
