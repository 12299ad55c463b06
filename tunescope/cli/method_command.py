"""The command of a registered method: arguments and options from its signature, help from its docstring."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.cli.where_it_runs import EngineSettings, Executor, Workers, engine_options
from tunescope.experiments.method_steps import takes_null
from tunescope.experiments.option_types import value_of
from workbench.errors import UserError
from workbench.method_options import Option
from workbench.methods import Method

if TYPE_CHECKING:
    from tunescope.experiments.method_run import Checked
    from workbench.first_batch import Phase

Base = Annotated[str, typer.Argument(help="The base model: a folder or a hub id.")]
Tuned = Annotated[str, typer.Argument(help="The fine-tuned model, or a PEFT adapter of the base.")]
PromptFile = Annotated[Path, typer.Option("--prompts", help="Prompts: .jsonl, .json, .csv, .parquet or .txt.")]
COMMON: dict[str, Any] = {
    "device": (Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")], "auto"),
    "dtype": (Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")], "auto"),
    "seed": (Annotated[int, typer.Option(help="Seed of splits, draws and intervals.")], 0),
    "limit": (Annotated[int | None, typer.Option(min=1, help="A seeded sample of at most so many prompts.")], None),
    "null_adapters": (
        Annotated[
            str | None,
            typer.Option(
                "--null",
                "--null-adapters",
                help="Set scores among those of null adapters: random, shuffled, or how many.",
            ),
        ],
        None,
    ),
    "workers": (Workers, None),
    "executor": (Executor, "local"),
    "engine_settings": (EngineSettings, None),
    "out": (Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in ./runs.")], None),
    "dry_run": (Annotated[bool, typer.Option("--dry-run", help="Check everything and say what it costs.")], False),
    "timed": (Annotated[bool, typer.Option("--timed", help="With --dry-run: time the first batches.")], False),
    "as_json": (Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")], False),
}
"""Options of every method."""
PLAIN = {"integer": int, "number": float, "flag": bool, "controls": int, "lora": int}
_REPEATED = "prompt sets"


def command_of(method: Method) -> Any:
    """The click command of a method."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(method.name, help=help_of(method))(_callback(method))
    return typer.main.get_command(app)


def help_of(method: Method) -> str:
    """Question, what the prompts need, what it costs, and an example that runs."""
    wanted = [*(f"{column}" for column in method.needs.columns)]
    wanted += [f"{column} ({when})" for column, when in method.needs.wants.items()]
    prompts = f" Prompts need {', '.join(wanted)}." if wanted else ""
    cost = f"\n\nCost: {method.cost}." if method.cost else ""
    papers = f"\n\nFrom: {'; '.join(method.papers)}." if method.papers else ""
    caution = f"\n\n{method.caution}" if method.caution else ""
    return f"{method.question} {method.summary}{prompts}{cost}{caution}{papers}\n\nExample: {example_of(method)}"


def example_of(method: Method) -> str:
    """A command line that runs beside a folder with these models and prompts."""
    prompts = "--prompts p.jsonl" if reads_prompts(method) else ""
    models = "./base" if method.kind == "training" else "./base ./tuned"
    parts = ["tunescope", method.command, models, prompts, method.example]
    return " ".join(part for part in parts if part)


def reads_prompts(method: Method) -> bool:
    """Whether the command asks for a file of prompts."""
    return not {"prompts", "recording"}.isdisjoint(method.arguments)


def _callback(method: Method) -> Callable[..., None]:
    """The function behind the command, with a signature for Typer."""
    models = {"base": Base} | ({} if method.kind == "training" else {"tuned": Tuned})
    parameters: dict[str, Any] = {name: (hint, inspect.Parameter.empty) for name, hint in models.items()}
    if reads_prompts(method):
        parameters["prompts"] = (PromptFile, inspect.Parameter.empty)
    placed = ("executor", "engine_settings")  # said where the whole command runs
    own = {option.name: option for option in shown_options(method) if option.name not in placed}
    parameters |= {name: _parameter(option, alone="prompts" not in parameters) for name, option in own.items()}
    parameters |= {name: pair for name, pair in COMMON.items() if _has(method, name) and name not in parameters}

    def run(**values: Any) -> None:
        from tunescope.experiments.method_run import MethodCall, checked

        options = {name: values.pop(name) for name in own}
        settings = {name: _plain(own[name], value) for name, value in options.items() if value is not None}
        dry_run, timed, as_json = values.pop("dry_run"), values.pop("timed"), values.pop("as_json")
        null = values.pop("null_adapters", None)
        values["null_adapters"] = int(null) if null is not None and null.isdigit() else null
        if "engine_settings" in values:
            values["engine_settings"] = engine_options(values["engine_settings"])
        if timed and not dry_run:
            raise typer.BadParameter("it says what a dry run costs: give --dry-run with it.", param_hint="--timed")
        call = checked(MethodCall(method=method, options=settings, **values))
        if dry_run:
            _say_cost(call, as_json, timed=timed)
        else:
            _print(call, as_json)

    run.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
        for name, (hint, default) in parameters.items()
    ])  # fmt: skip
    return run


def _has(method: Method, name: str) -> bool:
    if name == "seed":
        return "seed" in method.arguments
    if name == "null_adapters":
        return takes_null(method)
    if name in ("workers", "executor", "engine_settings"):
        return not method.needs.folders and method.kind != "training"
    return name not in ("limit",) or reads_prompts(method)


def shown_options(method: Method) -> list[Option]:
    """The options that a command line can give, those of the recording and the choice of models among them."""
    options = [option for option in method.options if option.kind != "python"]
    if method.records is not None:
        options += [
            Option("sites", "texts", list(method.records.sites), "Sites, by commas."),
            Option("positions", "positions", method.records.positions, "Which tokens: last, all, content, prompt, ..."),
        ]
        if method.option("layer") is None:
            options.append(Option("layers", "layers", None, "Layers, by commas: indices or fractions of depth."))
    first = method.arguments[0] if method.arguments else ""
    if first in ("subject", "model") and method.kind != "training":
        sides = ("pair", "base", "tuned") if first == "subject" else ("base", "tuned")
        default = "pair" if first == "subject" else "tuned"
        options.append(Option("within", "choice", default, "Both models, or one alone.", choices=sides))
    return options


def _parameter(option: Option, *, alone: bool) -> tuple[Any, Any]:
    """The type and default of an option on the command line; what is not given is None, and has its own default.

    ``alone``: the command reads no other file of prompts, so sets of prompts are called that too.
    """
    flag = f"--{option.name.replace('_', '-')}"
    help_text = _help(option)
    missing = inspect.Parameter.empty if option.required else None
    if option.kind == "flag":
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text)], missing
    if option.kind in PLAIN:
        limits = {"min": option.minimum, "max": option.maximum}
        return Annotated[PLAIN[option.kind] | None, typer.Option(flag, help=help_text, **limits)], missing  # type: ignore[arg-type]
    if option.kind == _REPEATED:
        flags = (flag, "--prompts") if alone else (flag,)
        repeated = typer.Option(*flags, help=f"{help_text} One file of prompts for each, as NAME=FILE; repeat it.")
        return Annotated[list[str] if option.required else list[str] | None, repeated], missing
    return Annotated[str | None, typer.Option(flag, help=help_text)], missing


def _help(option: Option) -> str:
    default = option.default
    listed = isinstance(default, list | tuple)
    shown = ",".join(map(str, default)) if listed else str(default).replace("\n", r"\n")
    parts = [option.help.rstrip(".").replace("``", "") or option.name.replace("_", " ")]
    parts += [f"One of {', '.join(option.choices)}"] if option.choices else []
    parts += [f"Default: {shown}"] if default not in (None, "") and not option.required else []
    return ". ".join(parts) + "."


def _plain(option: Option, value: Any) -> Any:
    """A value of the command line as an experiment file holds it."""
    if option.kind in PLAIN:
        return value
    if option.kind == _REPEATED:
        return value_of(option, ",".join(value))
    text = value.replace("\\n", "\n") if option.kind == "text" else value
    flag = f"--{option.name.replace('_', '-')}"
    if option.choices and text not in option.choices:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(option.choices)}.", param_hint=flag)
    try:
        setting = value_of(option, text)
        if option.kind == "integers" and min(setting) < (option.minimum or 0):
            raise ValueError(f"{min(setting)} is below {option.minimum}.")
        return setting
    except UserError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def _print(call: Checked, as_json: bool) -> None:
    from tunescope.cli.output import emit, progress_bar

    with progress_bar() as bar:
        run, result = call.computed(bar, lambda notice: typer.echo(notice, err=True))
    caution = call.call.method.caution
    payload = {"run": str(run.path), **json.loads(result.to_json()), **({"caution": caution} if caution else {})}
    emit(payload, as_json, result.frame().head(20), title=f"{run.path}: {result.summary()}")
    if caution and not as_json:
        typer.echo(caution, err=True)


def _say_cost(call: Checked, as_json: bool, *, timed: bool) -> None:
    """What a dry run says: that nothing is missing, and what the method costs."""
    from tunescope.cli.output import emit

    method, rows = call.call.method, None if call.prompts is None else len(call.prompts)
    payload: dict[str, Any] = {"method": method.name, "prompts": rows, "cost": method.cost}
    title = f"{method.command}: nothing is missing, and nothing was run"
    if timed:
        phases, whole = call.timed()
        payload |= {"phases": [phase.to_dict() for phase in phases], "ran_to_the_end": whole}
        title = f"{method.command}: {_time_needed(phases, whole=whole)}; nothing was kept"
    emit(payload, as_json, title=title)


def _time_needed(phases: Sequence[Phase], *, whole: bool) -> str:
    """The seconds of each phase, for people."""
    lines = [
        f"{phase.what} about {phase.expected:.0f} s ({phase.done} of {phase.units} measured)"
        for phase in phases
        if phase.expected is not None
    ]
    if whole:
        return f"all of it took {sum(phase.seconds for phase in phases):.0f} s"
    return f"{'; '.join(lines)}; what follows was not reached"
