"""The call behind a result, from its provenance alone: as Python, as a command, and as the step of an experiment."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tunescope.experiments.yaml_text import write_yaml
from workbench.errors import NotSupported
from workbench.method_index import index, load_method
from workbench.method_options import Option
from workbench.methods import Method
from workbench.results import Provenance

MANY = "prompts.jsonl"


@dataclass(frozen=True)
class CallForms:
    """The same call in three languages."""

    python: str
    command: str
    yaml: str


def method_of(provenance: Provenance) -> Method:
    """The registered method that made a result.

    Raises:
        NotSupported: No method of that name is installed, as with a plug-in that is gone.
    """
    entries = [entry for entry in index().entries if entry.function == provenance.probe]
    methods = [load_method(entry.name) for entry in entries]
    fitting = [method for method in methods if _fixed_as(method, provenance.settings)]
    if not (fitting or methods):
        raise NotSupported(
            f"The method {provenance.probe!r} that made this result is not installed: install the plug-in that brought "
            "it, or update your checkout."
        )
    return (fitting or methods)[0]


def caution_of(provenance: Provenance) -> str:
    """What the q of a result may not be read as (:attr:`workbench.methods.Method.caution`); empty where null adapters
    come out null, or the method is gone."""
    try:
        return method_of(provenance).caution
    except NotSupported:
        return ""


def options_of_result(provenance: Provenance) -> dict[str, Any]:
    """Option -> value, of those that are not at their default, in plain values."""
    method = method_of(provenance)
    settings = _flat(method, provenance.settings)
    options = {}
    for option in method.options:
        if option.name in settings and _plain(settings[option.name]) != _plain(option.default):
            options[option.name] = _named(option, settings[option.name])
    return options


def _named(option: Option, value: Any) -> Any:
    """A behaviour by its name, by which files and commands call it."""
    return value["name"] if option.kind == "behaviour" and isinstance(value, Mapping) and "name" in value else value


def step_of(provenance: Provenance) -> dict[str, Any]:
    """The step that makes the result again, on the experiment's prompts and models."""
    method = method_of(provenance)
    seed = {"seed": provenance.seed} if provenance.seed else {}
    options = {
        name: value
        for name, value in options_of_result(provenance).items()
        if (option := method.option(name)) is not None and _written(option, value)
    }
    around = {"limit": method.takes_limit, "null_adapters": True}
    among = {
        name: provenance.settings[name]
        for name, offered in around.items()
        if offered and provenance.settings.get(name) is not None
    }  # fmt: skip
    return {"do": method.command, **_recorded(method, provenance.settings), **options, **among, **seed}


def call_forms(
    provenance: Provenance, *, base: str = "./base", tuned: str = "./tuned", prompts: str = MANY
) -> CallForms:
    """A result's call in Python, on the command line and as an experiment; paths as given, else placeholders."""
    method, step = method_of(provenance), step_of(provenance)
    seed = step.pop("seed", 0)
    sets = {"prompts": {"file": prompts}} if _reads_prompts(method) else {}
    experiment = {
        "name": method.name, **({"seed": seed} if seed else {}), "pair": {"base": base, "tuned": tuned},
        **({"prompts": sets} if sets else {}), "steps": {method.name: step},
    }  # fmt: skip
    options = {name: value for name, value in step.items() if name != "do"}
    return CallForms(
        python=_python(method, options, seed, base, tuned, prompts),
        command=_command(method, options, seed, base, tuned, prompts),
        yaml=write_yaml(experiment),
    )


def _python(method: Method, options: Mapping[str, Any], seed: int, base: str, tuned: str, prompts: str) -> str:
    """A script: load, record where that is read, call."""
    recording = {name: options[name] for name in ("sites", "layers", "positions", "new_tokens") if name in options}
    sampled = {"limit"} if method.takes_limit else set()
    own = {name: value for name, value in options.items() if method.option(name) is not None or name in sampled}
    lines = [*_IMPORTS[method.kind], "", f"pair = wb.load_pair({base!r}, {tuned!r})"]
    if method.kind == "training":
        lines[-1] = f"model = wb.load_model({base!r})"
    first = {"pair": "pair", "subject": "pair", "model": "pair.tuned", "base": "pair", "recording": "rec"}
    first |= {"model": "model"} if method.kind == "training" else {}
    arguments = [first[role] for role in method.arguments[:1] if role in first]
    if _reads_prompts(method):
        lines.append(f"prompts = wb.Prompts.load({prompts!r})")
    if "recording" in method.arguments:
        sites = recording.pop("sites", list(method.records.sites) if method.records else [])
        more = "".join(f", {name}={value!r}" for name, value in recording.items())
        lines.append(f"rec = wb.record(pair, prompts, {sites!r}{more})")
    elif "prompts" in method.arguments:
        arguments.append("prompts")
    arguments += [f"{name}={value!r}" for name, value in method.fixed.items()] + _packed(method, own, seed)
    arguments += ["model=pair.tuned"] if "model" in method.arguments[1:] else []
    own_seed = "seed" in method.arguments and not _seeded_settings(method)
    arguments += [f"seed={seed}"] if seed and own_seed else []
    call = f"{_IMPORTS[method.kind][0].split()[-1]}.{method.function}({', '.join(arguments)})"
    if "null_adapters" in options:
        call = _among_nulls(method, lines, arguments, options["null_adapters"])
    return "\n".join([*lines, f"result = {call}", *([] if method.kind == "training" else ["result.frame()"])])


_IMPORTS = {
    "probe": ["import probes", "import workbench as wb"],
    "training": ["import interventions as iv", "import workbench as wb"],
    "behaviour": ["import workbench.behaviour as behaviour", "import workbench as wb"],
}


def _seeded_settings(method: Method) -> str:
    """The parameter whose settings hold the seed; empty where the method takes it itself."""
    return "" if "seed" in inspect.signature(method.call).parameters else next(iter(method.expands), "")


def _packed(method: Method, own: Mapping[str, Any], seed: int) -> list[str]:
    """Options as arguments; fields of settings as those settings."""
    options = {name: method.option(name) for name in own}
    words = [f"{name}={own[name]!r}" for name, option in options.items() if option is None or not option.parameter]
    for parameter, usual in method.expands.items():
        fields = {
            option.field: own[name] for name, option in options.items() if option and option.parameter == parameter
        }
        fields |= {"seed": seed} if seed and parameter == _seeded_settings(method) else {}
        if fields and isinstance(usual, type):
            words.append(f"{parameter}={_SHORT[method.kind]}{_public(usual)}({_words(fields)})")
        elif fields:
            words.append(f"{parameter}=iv.{type(usual).__name__}({_words({**dataclasses.asdict(usual), **fields})})")
    return words


_SHORT = {"probe": "probes.", "training": "iv.", "behaviour": "behaviour."}


def _public(settings: type) -> str:
    """The name under which a package of ours shows a class of settings: ``KnobSetup`` for ``Setup`` of the knob."""
    package = import_module(settings.__module__.split(".")[0])
    return next((name for name in package.__all__ if name.endswith(settings.__name__)
                 and getattr(package, name) is settings), settings.__name__)  # fmt: skip


def _words(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def _among_nulls(method: Method, lines: list[str], arguments: list[str], nulls: str | int) -> str:
    """The call on the pair and on its null adapters; a recording is made anew for each, in the function itself."""
    recorded = [lines.pop().removeprefix("rec = ")] if lines[-1].startswith("rec = ") else []
    inside = [recorded[0] if word == "rec" else word for word in arguments]
    return f"probes.against_nulls(lambda pair: probes.{method.function}({', '.join(inside)}), pair, nulls={nulls!r})"


def _command(method: Method, options: Mapping[str, Any], seed: int, base: str, tuned: str, prompts: str) -> str:
    words = ["tunescope", *method.command.split(), base, *([] if method.kind == "training" else [tuned])]
    words += ["--prompts", prompts] if _reads_prompts(method) else []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, _text(value)]
    return shlex.join([*words, *(["--seed", str(seed)] if seed else [])])


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, Mapping) and all(isinstance(part, list) for part in value.values()):
        return ";".join(f"{place}={','.join(map(str, labels))}" for place, labels in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _recorded(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was recorded for the method, where it is not what would be recorded anyway."""
    recording = settings.get("recording")
    if method.records is None or not isinstance(recording, Mapping):
        return {}
    usual = {"sites": list(method.records.sites), "positions": method.records.positions}
    keys = {name: _shortened(recording[name]) for name in usual if name in recording}
    return {name: value for name, value in keys.items() if value != usual[name]}


def _shortened(value: Any) -> Any:
    """Positions as a person writes them: ``last`` for ``{"at": "last"}``."""
    if isinstance(value, Mapping) and set(value) == {"at"}:
        return value["at"]
    return list(value) if isinstance(value, tuple) else value


def _flat(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the fields of nested ones (``training``, ``setup``) as options of their own."""
    flat = dict(settings)
    for option in method.options:
        inside = settings.get(option.parameter) if option.parameter else None
        if isinstance(inside, Mapping) and option.field in inside:
            flat[option.name] = inside[option.field]
    return flat


def _fixed_as(method: Method, settings: Mapping[str, Any]) -> bool:
    return all(_plain(settings.get(name, value)) == _plain(value) for name, value in method.fixed.items())


def _written(option: Option, value: Any) -> bool:
    """Whether a file can say it: functions and data are known by name or hash alone."""
    if option.kind in ("python", "prompts", "prompt sets", "column", "spans", "recipe", "recipes"):
        return False
    return not (isinstance(value, str) and value.startswith("function "))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _reads_prompts(method: Method) -> bool:
    return not {"prompts", "recording"}.isdisjoint(method.arguments)
