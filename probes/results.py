"""What every probe returns: a table of scores with control and interval, its origin and its cost."""

from __future__ import annotations

import dataclasses
import hashlib
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
import plotly.graph_objects as go

from probes import storage
from workbench.errors import UserError

CELL = ("layer", "head", "expert", "module", "position")
SHARED = ("score", "low", "high", "control", "q")
Result = TypeVar("Result", bound="ProbeResult")
_PACKAGES = ("tunescope", "torch", "transformers", "peft", "numpy", "scipy")


@cache
def _installed_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def prompts_hash(prompts: Any) -> str | None:
    """A hash of ``prompts``: their own ``hash`` if they have one, else of their rows."""
    if prompts is None:
        return None
    own = getattr(prompts, "hash", None)
    if isinstance(own, str):
        return own
    rows = json.dumps(list(prompts), sort_keys=True, default=str)
    return hashlib.sha256(rows.encode()).hexdigest()


def _identity(model: Any) -> Any:
    """The identity of a model as plain values; a name or an identity already plain is kept."""
    own = getattr(model, "identity", model)
    if hasattr(own, "to_dict"):
        return own.to_dict()
    return own if isinstance(own, str | dict) else str(own)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a result was made from and what it cost.

    ``models`` maps a role ("base", "tuned") to an identity (name, revision, hashes of weights and adapter) or
    to a name alone. Passes are counted in batches through one model.
    """

    probe: str
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
    def of(cls, probe: str, models: Mapping[str, Any], prompts: Any = None, **more: Any) -> Provenance:
        """From models (anything with ``.identity``, or a name) and prompts; ``more`` are the other fields."""
        names = {role: _identity(model) for role, model in models.items()}
        count = 0 if prompts is None else len(prompts)
        return cls(probe=probe, models=names, prompts=prompts_hash(prompts), n_prompts=count, **more)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The common part of all results; a probe adds its own fields (tensors, tables, numbers, text, dicts).

    ``table`` has one row per cell: ``layer`` and one or more of ``head``, ``expert``, ``module``,
    ``position`` name it; ``score`` with its 95 % interval ``low``, ``high``; ``control`` is what the control
    scored there (its mean over draws); ``q`` the false-discovery rate. The field ``control`` says in words
    what the control is.
    """

    table: pd.DataFrame
    control: str
    provenance: Provenance

    title: ClassVar[str] = "Probe"
    unit: ClassVar[str] = "score"

    def frame(self) -> pd.DataFrame:
        """The table with the shared columns first, best score first; ties keep their order."""
        return sorted_frame(self.table)

    def figure(self) -> go.Figure:
        """The result as a plotly figure."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write one ``.safetensors`` file (arrays, and JSON in its header); returns its path."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["provenance"] = dataclasses.asdict(self.provenance)
        return storage.write(path, f"{type(self).__module__}:{type(self).__qualname__}", fields)

    @classmethod
    def load(cls: type[Result], path: str | Path) -> Result:
        """Read a result back; ``ProbeResult.load`` reads any, a probe's own class only its own kind."""
        kind, fields = storage.read(path)
        found = _result_class(kind)
        if not issubclass(found, cls):
            raise UserError(f"{path} holds a {found.__name__}, not a {cls.__name__}; read it with ProbeResult.load.")
        return found(**{**fields, "provenance": Provenance(**fields["provenance"])})

    def to_json(self) -> str:
        """The sorted table, the control and the provenance as JSON with plain lists (NaN becomes null)."""
        rows = json.loads(self.frame().to_json(orient="records"))
        made = dataclasses.asdict(self.provenance)
        return json.dumps({"probe": self.title, "control": self.control, "provenance": made, "rows": rows}, default=str)

    def summary(self) -> str:
        """One line for people; a probe may say more."""
        return f"{len(self.table)} cells, {self.unit}; control: {self.control}"

    def _repr_html_(self) -> str:
        made = json.dumps(dataclasses.asdict(self.provenance), indent=1, default=str)
        shown = self.frame().head(10).to_html(escape=True, index=False, float_format="{:.4g}".format, border=0)
        return (
            f"<h4>{html.escape(self.title)}</h4><p>{html.escape(self.summary())}</p>{shown}"
            f"<details><summary>Provenance</summary><pre>{html.escape(made)}</pre></details>"
        )


def sorted_frame(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the shared columns first (added where absent), best score first; ties keep their order."""
    cell = [name for name in CELL if name in table or name == "layer"]
    columns = [*cell, *SHARED, *(name for name in table if name not in {*cell, *SHARED})]
    return table.reindex(columns=columns).sort_values("score", ascending=False, kind="stable", ignore_index=True)


def _result_class(kind: str) -> type[Any]:
    """The class named ``module:Class``; only results of ours, so a file cannot name other code."""
    module, _, name = kind.partition(":")
    if module == "probes" or module.startswith("probes."):
        try:
            found = getattr(import_module(module), name, None)
        except ModuleNotFoundError:
            found = None
        if isinstance(found, type) and issubclass(found, ProbeResult):
            return found
    raise UserError(f"This file holds a result of unknown kind {kind!r}; update Tunescope to read it.")
