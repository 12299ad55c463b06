"""What a method needs of prompts and models, checked before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunescope.experiments.inputs import PairSpec
from tunescope.experiments.schema import Experiment
from workbench.argument_checks import check_labels
from workbench.errors import UserError, unknown_name
from workbench.files import closest_sibling
from workbench.method_index import Entry
from workbench.methods import Method
from workbench.prompts import Prompts

_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def check_pair(method: Method | Entry, pair: PairSpec) -> None:
    """Refuse models that are not there, or that the method cannot serve, as far as their folders tell.

    Raises:
        UserError: A path leads nowhere, or the model has no experts.
    """
    for role in ("base", "tuned"):
        name = getattr(pair, role)
        if name and _is_path(name) and not Path(name).expanduser().exists():
            raise UserError(f"There is no {role} model {name}.{closest_sibling(Path(name).expanduser())}")
    if method.needs.experts and pair.base is not None:
        config = _config(Path(pair.base).expanduser())
        if config is not None and not _names_experts(config):
            raise UserError(
                f"{pair.base!r} is dense ({config.get('model_type', 'no mixture of experts')}), and "
                f"{method.command} reads the experts of a mixture: use localize heads or localize weights here."
            )


def are_dense(*models: str) -> bool:
    """Whether the configs of these models name no experts, as far as they lie in folders here; False where none does.

    Args:
        models: Folders or hub ids.
    """
    configs = [config for model in models if model and (config := _config(Path(model).expanduser())) is not None]
    return bool(configs) and not any(map(_names_experts, configs))


def check_null(method: Method, pair: PairSpec) -> None:
    """Refuse ``null`` where the tuned model's folder shows that it is no adapter.

    Raises:
        UserError: The tuned model is whole, so that no null adapter can stand in for it.
    """
    folder = None if pair.tuned is None else Path(pair.tuned).expanduser()
    if folder is not None and (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise UserError(
            f"{pair.tuned!r} is a whole model, and {method.command} with null compares an adapter with null "
            "adapters: give a PEFT adapter, or leave null out."
        )


def check_paths(**paths: str | Path | None) -> None:
    """Refuse paths that lead nowhere, before anything is imported for them.

    Raises:
        UserError: Names the option and the path.
    """
    for name, path in paths.items():
        written = None if path is None else Path(path).expanduser()
        if written is not None and (isinstance(path, Path) or _is_path(str(path))) and not written.exists():
            what = "file" if name == "prompts" else f"{name} model"
            raise UserError(f"There is no {what} {path}.{closest_sibling(written)}")


def check_prompts(method: Method, experiment: Experiment, limit: int | None = None) -> Prompts | None:
    """The method's prompts, at most ``limit`` of them (a seeded sample); None for a method without.

    Raises:
        UserError: A file is missing, or its rows lack a column that the method needs.
    """
    for name, named in experiment.prompts.items():
        if named.file is not None and not Path(named.file).is_file():
            raise UserError(f"There is no file {named.file}: check {'--prompts' if name == 'prompts' else name}.")
    spec = experiment.prompts.get("prompts")
    if spec is None or spec.file is None or not {"prompts", "recording"} & set(method.arguments):
        return None
    rows = Prompts.load(spec.file)
    if limit is not None:
        rows = sample(rows, limit, experiment.seed)
    step = experiment.steps[method.name]
    settings = {name: getattr(step, name) for name in type(step).model_fields}
    check_columns(method, rows, settings)
    _check_named(method, rows, settings)
    if method.check is not None:
        method.check(rows, _said(method, experiment, settings))
    return rows


def _check_named(method: Method, rows: Prompts, settings: Mapping[str, Any]) -> None:
    known = sorted({name for row in rows for name in row.as_dict()})
    for option in method.options:
        value = settings.get(option.name)
        if option.kind == "column" and isinstance(value, str) and value not in known:
            raise unknown_name("column", value, known)


def _said(method: Method, experiment: Experiment, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every option with its value or default, prompts as rows, and the models' names."""
    said = {option.name: option.default for option in method.options}
    said |= {name: value for name, value in settings.items() if value is not None}
    for option in method.options:
        named = experiment.prompts.get(said[option.name]) if option.kind == "prompts" and said[option.name] else None
        if named is not None and named.file is not None:
            said[option.name] = Prompts.load(named.file)
    return {**said, "base": experiment.pair.base, "tuned": experiment.pair.tuned}


def check_columns(method: Method | Entry, rows: Prompts, settings: Mapping[str, Any]) -> None:
    """Refuse prompts without the columns that the method cannot do without, or with too few rows of a class.

    Args:
        method: From the registry.
        rows: The prompts.
        settings: Option -> value; defaults may be left out.

    Raises:
        UserError: Names the column, or the class.
    """
    if method.needs.per_class:
        _check_classes(method, rows, settings)
    columns = {name for row in rows for name, value in row.as_dict().items() if value is not None}
    if "label" in method.needs.columns and settings.get("labels") is not None:
        return  # the labels come from another column
    for column in method.needs.columns:
        if column not in columns and not _excused(column, settings):
            raise UserError(_lacks(method, column))
    for column, when in method.needs.wants.items():
        key, _, value = when.partition("=")
        if value and settings.get(key) == value and column not in columns:
            raise UserError(f"{_lacks(method, column).rstrip('.')} ({key}={value}).")


def _check_classes(method: Method | Entry, rows: Prompts, settings: Mapping[str, Any]) -> None:
    labels = settings.get("labels")
    column = labels if isinstance(labels, str) else "label"
    values = [row.as_dict().get(column) for row in rows] if labels is None or isinstance(labels, str) else labels
    if any(value is not None for value in values):  # a column that no row has is refused by its name
        check_labels(values, method.needs.per_class)


def sample(rows: Prompts, limit: int, seed: int) -> Prompts:
    """At most ``limit`` rows, drawn with ``seed``, in their order. More than there are is all of them."""
    return rows.sample(limit, seed=seed)


def _excused(column: str, settings: Mapping[str, Any]) -> bool:
    return column == "answer" and settings.get("metric") == "kl"


def _lacks(method: Method | Entry, column: str) -> str:
    instead = f"; {method.needs.instead}" if method.needs.instead else ""
    return f"{method.command} needs a column {column!r} in the prompts, and no row has one: add it{instead}."


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _names_experts(config: Mapping[str, Any]) -> bool:
    inner = config.get("text_config")
    parts = [config, inner if isinstance(inner, dict) else {}]
    return any(part.get(key) for part in parts for key in _EXPERT_KEYS)


def _config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None
