"""Options of commands whose forward passes may run elsewhere: over a Ray cluster, or in vLLM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workbench.placement import Placement

Workers = Annotated[int | None, typer.Option(help="Share the work out over so many processes of a Ray cluster.", min=1)]
Executor = Annotated[str, typer.Option(help="Who writes texts and reads how likely they are: local, or vllm.")]
EngineSettings = Annotated[
    str | None, typer.Option(help="For vLLM: settings of its engine, as JSON: '{\"max_model_len\": 4096}'.")
]


def placement(workers: int | None, executor: str, engine_settings: str | None) -> Placement:
    """What was chosen, checked before a model is loaded."""
    from workbench.placement import Placement

    return Placement(workers, executor, engine_options(engine_settings))


def engine_options(text: str | None) -> dict[str, Any] | None:
    """The settings of ``--engine-settings``. Raises :class:`typer.BadParameter` for what is no object of JSON."""
    if text is None:
        return None
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{text!r} is no JSON ({error.msg}).", param_hint="--engine-settings") from None
    if not isinstance(options, dict):
        raise typer.BadParameter(
            f'{text!r} is no object, as {{"max_model_len": 4096}}.', param_hint="--engine-settings"
        )
    return options
