"""What results have in common: where they come from, one file each, and how a notebook shows them."""

from __future__ import annotations

import dataclasses
import html
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd

from workbench import result_file
from workbench.call_settings import call_settings, prompts_hash
from workbench.cards import visible
from workbench.errors import UserError
from workbench.jsonable import jsonable
from workbench.notebook import embed_figures, in_kernel
from workbench.vllm.route import executor_around

if in_kernel():
    embed_figures()

Kept = TypeVar("Kept", bound="Result")
_PACKAGES = ("tunescope", "torch", "transformers", "peft", "numpy", "scipy")
_ROOMS = ("probes", "workbench.behaviour", "interventions.training")
"""Where results are defined: a file cannot name other code."""


@cache
def _installed_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _roles(models: Any) -> Mapping[str, Any]:
    """Role -> model: of a model, of what is that already, and of a pair or whatever else has both sides."""
    if hasattr(models, "role"):
        return {models.role: models}
    if isinstance(models, Mapping):
        return models
    if hasattr(models, "models"):
        return dict(models.models)
    return {"base": models.base, "tuned": models.tuned}


def _identity(model: Any) -> Any:
    """The identity of a model as plain values; a name or an identity already plain is kept."""
    own = getattr(model, "identity", model)
    if hasattr(own, "to_dict"):
        whose = getattr(model, "template", None) if getattr(model, "has_chat_template", False) else None
        return own.to_dict() | ({} if whose is None else {"chat_template": whose})
    return own if isinstance(own, str | dict) else str(own)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a result was made from and what it cost.

    ``models`` maps a role ("base", "tuned") to an identity (name, revision, hashes of weights and adapter) or
    to a name alone. Passes are counted in batches through one model.
    """

    probe: str
    """The function that made the result."""
    models: Mapping[str, Any]
    prompts: str | None = None
    n_prompts: int = 0
    seed: int | None = None
    device: str = "cpu"
    forward_passes: int = 0
    backward_passes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: dict(_installed_versions()))

    @classmethod
    def of(cls, probe: str, models: Any, prompts: Any = None, **more: Any) -> Provenance:
        """What the function ``probe`` made from models and prompts.

        Args:
            probe: The function.
            models: A pair, a model, or role -> model (anything with ``.identity``, or a name).
            prompts: What was read.
            more: The other fields; the device is that of the models unless it is said.
        """
        roles = _roles(models)
        device = next((str(model.device) for model in roles.values() if hasattr(model, "device")), "cpu")
        names = {role: _identity(model) for role, model in roles.items()}
        count = 0 if prompts is None else len(prompts)
        fields = {"device": device, **more}
        if elsewhere := executor_around(roles.values()):
            fields["settings"] = {**fields.get("settings", {}), **elsewhere}
        return cls(probe=probe, models=names, prompts=prompts_hash(prompts), n_prompts=count, **fields)


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """The common part of all results: a table and its origin; each kind adds its own fields (tensors, tables, numbers,
    text, dicts) and is kept in one file.
    """

    table: pd.DataFrame
    provenance: Provenance

    title: ClassVar[str] = "Result"

    def frame(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def of_call(self: Kept, function: str, arguments: Mapping[str, Any]) -> Kept:
        """This result with ``arguments`` among the settings of its provenance, if ``function`` made it; settings that
        it says itself stay as they are."""
        made = self.provenance
        if made.probe != function:
            return self
        settings = {**call_settings(None, **arguments), **made.settings}
        return dataclasses.replace(self, provenance=dataclasses.replace(made, settings=settings))

    def save(self, path: str | Path) -> Path:
        """Write one ``.safetensors`` file (arrays, and JSON in its header); returns its path."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["provenance"] = dataclasses.asdict(self.provenance)
        return result_file.write(path, f"{type(self).__module__}:{type(self).__qualname__}", fields)

    @classmethod
    def load(cls: type[Kept], path: str | Path) -> Kept:
        """Read a result back; the common class reads any, a class of its own only its own kind."""
        kind, fields = result_file.read(path)
        result_class = _result_class(kind)
        if not issubclass(result_class, cls):
            raise UserError(
                f"{path} holds a {result_class.__name__}, not a {cls.__name__}; read it with {result_class.__name__}."
            )
        return result_class(**{**fields, "provenance": Provenance(**fields["provenance"])})

    def to_json(self) -> str:
        """The table and the provenance as JSON with plain lists (NaN becomes null)."""
        return json.dumps({"result": self.title, **self._plain(self.frame())}, default=str)

    def summary(self) -> str:
        """One line for people."""
        return f"{len(self.table)} lines"

    def _plain(self, table: pd.DataFrame) -> dict[str, Any]:
        return {"provenance": dataclasses.asdict(self.provenance), "rows": jsonable(table)}

    def __init_subclass__(cls, **options: Any) -> None:
        """A dataclass would make a repr of its own, which prints every table and tensor; keep ours."""
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        shown = f"{type(self).__name__}: {self.summary()}\n{self.frame().head(10).to_string(index=False)}"
        return visible(shown, keep="\n")  # a model's tokens must not reach a terminal as escape codes

    def _repr_html_(self) -> str:
        made = json.dumps(dataclasses.asdict(self.provenance), indent=1, default=str)
        return (
            f"<h4>{html.escape(self.title)}</h4><p>{html.escape(self.summary())}</p>{self._html()}"
            f"<details><summary>Provenance</summary><pre>{html.escape(made)}</pre></details>"
        )

    def _html(self) -> str:
        """What stands between summary and provenance in a notebook."""
        return self.frame().head(10).to_html(escape=True, index=False, float_format="{:.4g}".format, border=0)


def _plugins() -> set[str]:
    """The modules that installed plug-ins register methods in; their results are read too."""
    from workbench.method_index import index

    return {entry.module for entry in index().entries if entry.plugin}


def _result_class(kind: str) -> type[Any]:
    """The class named ``module:Class``; only results of ours, so a file cannot name other code."""
    module, _, name = kind.partition(":")
    if any(module == room or module.startswith(f"{room}.") for room in (*_ROOMS, *_plugins())):
        try:
            candidate = getattr(import_module(module), name, None)
        except ModuleNotFoundError:
            candidate = None
        if isinstance(candidate, type) and issubclass(candidate, Result):
            return candidate
    raise UserError(f"This file holds a result of unknown kind {kind!r}; update Tunescope to read it.")
