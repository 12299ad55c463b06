"""Options of commands that give prompts to a pair: how texts are read, and by which settings texts are written."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Raw = Annotated[
    bool, typer.Option("--raw", help="Read texts as they are, not as user turns, also where there is a chat template.")
]
System = Annotated[
    str | None, typer.Option(help="A system turn in front of texts, and of chats that have none of their own.")
]
Template = Annotated[
    str, typer.Option(help="Whose chat template prompts are put through: tuned or base for both, or own.")
]
OwnGenerationConfig = Annotated[
    bool,
    typer.Option(
        "--own-generation-config", help="Keep each model's generation_config (a repetition penalty, …) in texts."
    ),
]


def turns(raw: bool, system: str | None) -> dict[str, Any]:
    """``chat`` and ``system`` of :meth:`workbench.prompts.Prompts.of`, checked."""
    if raw and system is not None:
        raise typer.BadParameter("a system turn makes a chat, and --raw none; give one of them.", param_hint="--raw")
    return {"chat": False if raw else None, "system": system}


def pair_reading(template: str, own_generation_config: bool) -> dict[str, Any]:
    """Options of :func:`workbench.load_pair`, checked before anything is imported."""
    if template not in ("tuned", "base", "own"):
        raise typer.BadParameter(f"{template!r} is none of tuned, base, own.", param_hint="--template")
    return {"template": template, "own_generation_config": own_generation_config}
