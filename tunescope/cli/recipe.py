"""``tunescope recipe show|check|export|certify``, and the book of named recipes: ``book|keep|drop``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.cli.where_it_runs import EngineSettings, engine_options, placement

if TYPE_CHECKING:
    from interventions.recipe import Recipe
    from workbench.models.adapted import AdaptedModel

app = typer.Typer(no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="A recipe file, a .gguf control vector, or a line such as 0.5*formal.")]
Model = Annotated[str, typer.Argument(help="The model: a folder or a hub id. With --tuned, the base.")]
Tuned = Annotated[str | None, typer.Option(help="The fine-tuned model or adapter; the recipe is then for it.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]
_LINES = {"ignore_unknown_options": True}
"""A line may begin with minus, as in ``-0.5*formal``."""
FORMATS = ("gguf", "model", "adapter", "module", "recipe")


@app.command("show", context_settings=_LINES)
def show_command(file: File, as_json: AsJson = False) -> None:
    """Show what a recipe does, in order, and what it was made with.

    Example, offline:  tunescope recipe show knob.safetensors
    """
    from interventions.exchange.reading import load_recipe
    from tunescope.cli.output import emit
    from workbench.cards import counted

    recipe = load_recipe(file)
    steps = [
        {"kind": intervention.kind, "does": repr(intervention), "content": intervention.content}
        for intervention in recipe
    ]
    payload = {"recipe": str(file), "content": recipe.content, "made_with": recipe.made_with, "interventions": steps}
    made_for = (recipe.made_with.get("model") or {}).get("name")
    title = f"{file}: {counted(len(steps), 'intervention')}" + (f", made for {made_for}" if made_for else "")
    emit(payload, as_json, [{"kind": step["kind"], "does": step["does"]} for step in steps], title=title)


@app.command("check", context_settings=_LINES)
def check_command(file: File, model: Model, tuned: Tuned = None, as_json: AsJson = False) -> None:
    """Check that a recipe fits a model; exit code 1 and the reason when it does not.

    Example, offline:  tunescope recipe check knob.safetensors ./base --tuned ./adapter
    """
    from interventions.exchange.reading import load_recipe
    from tunescope.cli.output import emit

    recipe = load_recipe(file)
    side = _last(load_sides(model, tuned))
    recipe.check(side)
    made = (recipe.made_with.get("model") or {}).get("identity")
    same = None if made is None else made == side.identity.hash
    payload = {"recipe": str(file), "model": side.name, "fits": True, "made_on_these_weights": same}
    emit(payload, as_json)


@app.command("export", context_settings=_LINES)
def export_command(
    file: File,
    out: Annotated[Path, typer.Argument(help="Where to write: a file for gguf and recipe, a folder for the others.")],
    model: Annotated[
        str, typer.Option(help="The model the recipe is for: a folder or a hub id. With --tuned, the base.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="gguf, model (weights), adapter (PEFT; a second one for a pair), module (torch hooks) or recipe."
        ),
    ],
    tuned: Tuned = None,
    dtype: Annotated[
        str, typer.Option(help="What the model is loaded and written in: auto, float32, bfloat16, float16.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a recipe for other tools, where that is exact; otherwise say why not.

    Of an adapter pair, model merges the adapter, adapter is a second LoRA beside it, and module hooks into both.

    Example, offline:  tunescope recipe export offset.safetensors offset.gguf --to gguf --model ./base
    """
    if to not in FORMATS:
        raise typer.BadParameter(f"{to!r} is none of {', '.join(FORMATS)}.", param_hint="--to")
    from interventions.exchange.reading import load_recipe
    from tunescope.cli.output import emit

    recipe, side = load_recipe(file), _last(load_sides(model, tuned, dtype=dtype))
    written = _export(recipe, side, to, out)
    emit({"recipe": str(file), "format": to, "written": str(written)}, as_json)


@app.command("certify", context_settings=_LINES)
def certify_command(  # noqa: PLR0913 (one parameter per option)
    file: File,
    target: Annotated[
        Path, typer.Argument(help="What was exported: a .gguf control vector, or a folder; vllm for that engine.")
    ],
    model: Annotated[
        str, typer.Option(help="The model the recipe is for: a folder or a hub id. With --tuned, the base.")
    ],
    prompts: Annotated[Path, typer.Option(help="A file of prompts of the kind that will be served.")],
    tuned: Tuned = None,
    weights: Annotated[
        Path | None, typer.Option(help="For a control vector: the model's own .gguf file, which llama.cpp runs.")
    ] = None,
    engine_settings: EngineSettings = None,
    limit: Annotated[int, typer.Option(help="Prompts that are run at most.", min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each greedy continuation.", min=1)] = 16,
    dtype: Annotated[str, typer.Option(help="What the model is loaded in: auto, float32, bfloat16, float16.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Run the same prompts through our engine and through what was exported; exit code 1 where they do not agree.

    ``vllm`` runs the recipe itself in vLLM, per request, as  tunescope serve  does there.

    Example, offline:  tunescope recipe certify bias.safetensors baked --model ./base --prompts p.jsonl
    """
    from interventions.exchange.certificate import certify, target_kind
    from interventions.exchange.reading import load_recipe
    from tunescope.cli.output import emit
    from workbench.prompts import Prompts

    settings = engine_options(engine_settings)
    if target_kind(target, weights) == "vllm":
        placement(None, "vllm", engine_settings)  # refused here where it is not installed
    recipe, rows = load_recipe(file), Prompts.load(prompts)[:limit]
    sides = load_sides(model, tuned, dtype=dtype)
    certificate = certify(
        _last(sides), recipe.with_models_of(sides.values()), target, rows, weights=weights,
        engine_settings=settings, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    emit({"recipe": str(file), "export": str(target), **certificate.to_dict(), "says": certificate.summary()}, as_json)
    if not certificate.holds:
        raise typer.Exit(1)


Book = Annotated[
    Path | None, typer.Option("--book", help="The book's folder; default: $TUNESCOPE_BOOK, else ./recipes.")
]
Name = Annotated[str, typer.Argument(help="The name that lines are written with, as in 0.5*formal.")]


@app.command("book")
def book_command(book: Book = None, as_json: AsJson = False) -> None:
    """List the named recipes of the workspace's book, with which lines such as 0.5*formal are written.

    Example, offline:  tunescope recipe book
    """
    from interventions.recipe_book import RecipeBook
    from tunescope.cli.output import emit
    from workbench.cards import counted

    held = RecipeBook(book)
    rows = [{"name": name, "does": "; ".join(map(repr, recipe))} for name, recipe in held.items()]
    title = f"{held.folder}: {counted(len(rows), 'recipe')}"
    emit({"book": str(held.folder), "recipes": rows}, as_json, rows, title=title)


@app.command("keep", context_settings=_LINES)
def keep_command(name: Name, recipe: File, book: Book = None, as_json: AsJson = False) -> None:
    """Keep a recipe in the book under a name; it may itself be a line of other names.

    Example, offline:  tunescope recipe keep formal offset.safetensors
    """
    from interventions.exchange.reading import load_recipe
    from interventions.recipe_book import RecipeBook
    from tunescope.cli.output import emit

    held = RecipeBook(book)
    written = held.keep(name, load_recipe(recipe, held))
    emit({"name": name, "written": str(written)}, as_json)


@app.command("drop")
def drop_command(name: Name, book: Book = None, as_json: AsJson = False) -> None:
    """Delete a recipe from the book.

    Example, offline:  tunescope recipe drop formal
    """
    from interventions.recipe_book import RecipeBook
    from tunescope.cli.output import emit

    RecipeBook(book).drop(name)
    emit({"dropped": name}, as_json)


def _export(recipe: Recipe, side: AdaptedModel, to: str, out: Path) -> Path:
    if to == "gguf":
        from interventions.exchange.control_vectors import to_gguf

        return to_gguf(recipe, out, side)
    if to == "model":
        from interventions.exchange.bake import bake

        return bake(side, recipe, out)
    if to == "adapter":
        from interventions.exchange.adapter import to_adapter

        return to_adapter(side, recipe, out)
    if to == "module":
        from interventions.exchange.module import to_module

        return to_module(side, recipe, out)
    recipe.check(side)
    return recipe.save(out, model=side)


def load_sides(model: str, tuned: str | None, **options: Any) -> dict[str, AdaptedModel]:
    """``{"base": ..., "tuned": ...}``, or ``{"model": ...}`` when there is one."""
    from workbench.models.pair import load_one, load_pair

    if tuned is None:
        return {"model": load_one(model, **options)}
    return load_pair(model, tuned, **options).models


def _last(sides: dict[str, AdaptedModel]) -> AdaptedModel:
    return list(sides.values())[-1]
