"""``tunescope serve``: base, tuned and steered models behind OpenAI's API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.cli.where_it_runs import EngineSettings, engine_options, placement

if TYPE_CHECKING:
    from tunescope.serve.vllm_decoding import VllmDecoding
    from workbench.models.adapted import AdaptedModel

EXAMPLE = """
Example, offline:

  tunescope serve ./base --tuned ./adapter --recipe offset.safetensors
"""


def serve(  # noqa: PLR0913 (one parameter per option)
    model: Annotated[str, typer.Argument(help="The model: a folder or a hub id. With --tuned, the base.")],
    tuned: Annotated[str | None, typer.Option(help="The fine-tuned model, or a PEFT adapter of the base.")] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option(
            help="A recipe, a folder of them that is looked at on every request, or a line such as 0.5*formal."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8000,
    address: Annotated[str, typer.Option(help="Who may connect: this computer only, unless told.")] = "127.0.0.1",
    host: Annotated[
        list[str] | None, typer.Option(help="Further names that requests may be addressed to, behind a proxy.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The clients' key; by default a new one is made.", envvar="TUNESCOPE_TOKEN")
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Let everybody in who can connect.")] = False,
    max_tokens: Annotated[int, typer.Option(help="New tokens of a request at most.", min=1)] = 1024,
    waiting: Annotated[int, typer.Option(help="Requests that may wait; further ones are refused.", min=1)] = 64,
    batch: Annotated[
        int, typer.Option(help="Texts written at once at most; 1: in turns, bit for bit as single runs.", min=1)
    ] = 32,
    engine: Annotated[
        str, typer.Option(help="Who writes: vllm, own, or auto (vLLM where it is installed and can hold the models).")
    ] = "auto",
    engine_settings: EngineSettings = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Serve base, tuned and steered models side by side; each request chooses its recipe and strength."""
    if token is not None and no_token:
        raise typer.BadParameter("give --token or --no-token, not both.", param_hint="--no-token")
    if no_token and address not in ("127.0.0.1", "localhost", "::1"):
        raise typer.BadParameter("other computers may connect, so a token is needed.", param_hint="--no-token")
    if engine not in ("auto", "vllm", "own"):
        raise typer.BadParameter(f"{engine!r} is none of auto, vllm, own.", param_hint="--engine")
    if engine != "own" and (engine == "vllm" or engine_settings is not None):
        placement(None, "vllm", engine_settings)  # refused here where it is not installed
    from interventions.exchange.reading import is_line, load_recipe
    from tunescope.cli.recipe import load_sides
    from tunescope.serve.engine import Engine, Limits
    from tunescope.serve.running import run
    from tunescope.serve.served_recipes import ServedRecipes
    from workbench.local_address import check_free

    check_free(address, port)
    for line in filter(is_line, recipe or []):
        load_recipe(line)
    sides = load_sides(model, tuned, device=device, dtype=dtype)
    limits = Limits(max_tokens=max_tokens, waiting=waiting, batch=batch)
    writer = _writer(engine, sides, engine_options(engine_settings) or {}, batch)
    served = Engine(sides, ServedRecipes(recipe or [], sides), limits, writer)
    run(served, address, port, None if no_token else token, made=token is None and not no_token, hosts=host or [])


serve.__doc__ = f"{serve.__doc__}\n\n\b{EXAMPLE}"


def _writer(
    engine: str, sides: Mapping[str, AdaptedModel], settings: Mapping[str, Any], rows: int
) -> Callable[[], VllmDecoding] | None:
    """What opens vLLM; None where our own engine writes."""
    if engine == "own" or find_spec("vllm") is None:
        return None
    from tunescope.serve.vllm_decoding import check_served, opened
    from workbench.errors import UserError

    try:
        check_served(sides)
    except UserError as error:
        if engine == "vllm":
            raise
        typer.echo(f"Our own engine writes, as vLLM cannot: {error}", err=True)
        return None
    return partial(opened, sides, settings, rows)
