"""``tunescope steer``: base, tuned and steered answers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.cli.dry_run import DryRun, say_cost
from tunescope.cli.reading_options import OwnGenerationConfig, Raw, System, Template, pair_reading, turns

if TYPE_CHECKING:
    from workbench.models.adapted import AdaptedModel
    from workbench.prompts import Prompt

EXAMPLE = """
Example, offline:

  tunescope steer ./base --tuned ./adapter --recipe knob.safetensors --prompt "Where is Paris?" --strengths -2,0,2

  tunescope steer ./large --recipe proxy.safetensors --shift-tuned ./small-tuned --shift-base ./small --prompt "Hi"
"""


def steer(  # noqa: PLR0913 (one parameter per option)
    model: Annotated[str, typer.Argument(help="The model: a folder or a hub id. With --tuned, the base.")],
    recipe: Annotated[Path, typer.Option(help="A recipe file, a .gguf control vector, or a line such as 0.5*formal.")],
    tuned: Annotated[str | None, typer.Option(help="The fine-tuned model, or a PEFT adapter of the base.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt: a user turn where there is a chat template. Several are fine.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts instead: .jsonl, .json, .csv, .txt, …")
    ] = None,
    on: Annotated[str, typer.Option(help="Which side is steered: tuned, or base.")] = "tuned",
    strengths: Annotated[str, typer.Option(help="Factors for the recipe, by commas; one batch for all.")] = "1",
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per answer.")] = 64,
    ids: Annotated[bool, typer.Option("--ids", help="Say what is read: the rendered text and its token ids.")] = False,
    shift_tuned: Annotated[
        str | None, typer.Option(help="A recipe that shifts logits: its tuned model, if it is not one of the above.")
    ] = None,
    shift_base: Annotated[str | None, typer.Option(help="The same: its base model.")] = None,
    raw: Raw = False,
    system: System = None,
    template: Template = "tuned",
    own_generation_config: OwnGenerationConfig = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Load .bin checkpoints.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code the model brings.")] = False,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Answer prompts with the model as it is and with a recipe applied, greedily, and print both side by side."""
    factors = _numbers(strengths)
    if on not in ("tuned", "base"):
        raise typer.BadParameter(f"{on!r} is neither tuned nor base.", param_hint="--on")
    if bool(prompt) == bool(prompts):
        raise typer.BadParameter("give --prompt (once or more) or --prompts FILE.", param_hint="--prompt")
    if max_new_tokens < 1:
        raise typer.BadParameter("give 1 or more.", param_hint="--max-new-tokens")
    said, reading = turns(raw, system), pair_reading(template, own_generation_config)
    from tunescope.experiments.requirements import check_paths

    check_paths(base=model, tuned=tuned, prompts=prompts)
    from interventions.exchange.reading import load_recipe
    from interventions.sweep import steered_texts
    from tunescope.cli.output import emit
    from tunescope.cli.recipe import load_sides
    from tunescope.cli.steer_models import with_other_models
    from workbench.prompts import Prompts
    from workbench.prompts.encode import readable

    rows = Prompts.of(prompt, **said) if prompt else Prompts.load(prompts or Path(), **said)
    applied = load_recipe(recipe)
    if dry_run:
        plain = "base, tuned" if tuned else "the model"
        cost = f"{plain} and {len(factors)} strengths write {max_new_tokens} tokens to each of {len(rows)} prompts"
        say_cost("steer", len(rows), cost, as_json)
        return
    flags: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    options = {"device": device, "dtype": dtype, **flags}
    sides = load_sides(model, tuned, **options, **(reading if tuned else {}))
    applied = with_other_models(applied, sides, {"tuned": shift_tuned, "base": shift_base}, **options)
    applied = applied.with_models_of(sides.values())
    side = on if on in sides else next(iter(sides))
    applied.check(sides[side])
    texts: dict[str, Any] = {name: side.generate(rows, max_new_tokens=max_new_tokens) for name, side in sides.items()}
    steered = steered_texts(sides[side], applied, rows, factors, max_new_tokens=max_new_tokens)
    written = [
        {
            "prompt": row.shown if row.is_chat else readable(row, sides[side].tokenizer),
            **({"reads": _reads(sides, row)} if ids else {}),
            **{name: texts[name][number] for name in sides},
            "steered": [
                {"strength": factor, "text": text} for factor, text in zip(factors, steered[number], strict=True)
            ],
        }
        for number, row in enumerate(rows)
    ]
    payload = {
        "model": model, "tuned": tuned, "recipe": str(recipe), "interventions": list(map(repr, applied)),
        "on": side, "strengths": factors, "max_new_tokens": max_new_tokens, "rows": written,
    }  # fmt: skip
    emit(payload, as_json, _table(written, list(sides)), title=f"{recipe}, applied to {side}")


steer.__doc__ = f"{steer.__doc__}\n\n\b{EXAMPLE}"


def _reads(sides: Mapping[str, AdaptedModel], row: Prompt) -> dict[str, Any]:
    """The text and token ids that the model reads; by side where the sides' chat templates differ."""
    by_side: dict[str, Any] = {
        name: side.reads([row])[["text", "input_ids"]].to_dict("records")[0] for name, side in sides.items()
    }
    first: dict[str, Any] = next(iter(by_side.values()))
    return first if all(reading == first for reading in by_side.values()) else by_side


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers, such as -2,-1,0,1,2.", param_hint="--strengths"
        ) from None


def _table(rows: list[dict[str, Any]], sides: list[str]) -> list[dict[str, Any]]:
    """A line per strength; what does not depend on it stands in the first."""
    lines = []
    for row in rows:
        for number, steered in enumerate(row["steered"]):
            names = [name for name in ("prompt", "reads", *sides) if name in row]
            first = {name: row[name] if number == 0 else "" for name in names}
            lines.append({**first, "strength": steered["strength"], "steered": steered["text"]})
    return lines
