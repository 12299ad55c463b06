"""The recipe file: one ``.safetensors`` with the tensors, and under the metadata key ``tunescope`` JSON
``{version, interventions, made_with}``. Nothing in it is executed, and nothing unknown is passed over."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open

from interventions.base import Intervention, kind_named
from workbench.errors import UserError, unknown_name
from workbench.files import is_file
from workbench.models.adapted import AdaptedModel
from workbench.tensor_files import check_seal, write_safetensors
from workbench.typing import Tensor

VERSION = 1
_KEYS = ("version", "interventions", "made_with")
_SIZES = ("d_model", "n_layers", "n_heads", "d_head", "n_experts")


class OtherModelWarning(UserWarning):
    """A recipe was made on a model of the same shape but with other weights."""


def write(
    interventions: Sequence[Intervention], made_with: Mapping[str, Any], path: Path, model: AdaptedModel | None
) -> Path:
    """Write a recipe to ``path``, whole or not at all."""
    entries, tensors = [], {}
    for place, intervention in enumerate(interventions):
        settings, own = intervention.to_tensors()
        entries.append({"kind": intervention.kind, "settings": settings})
        tensors.update({f"{place}.{name}": [value.contiguous()] for name, value in own.items()})
    note = {"version": VERSION, "interventions": entries, "made_with": {**made_with, **_provenance(model)}}
    write_safetensors(path, tensors, note, sealed=True)
    return path


def read(path: Path) -> tuple[list[Intervention], dict[str, Any]]:
    """The interventions of a recipe file, and what it was made with; see :meth:`interventions.Recipe.load`."""
    note, tensors = _read(path)
    made = [_intervention(path, place, entry, tensors) for place, entry in enumerate(_entries(path, note))]
    if tensors:
        raise UserError(f"{path} holds a tensor {min(tensors)!r} that no intervention uses: it is no whole recipe.")
    return made, note["made_with"]


def check_made_for(made_with: Mapping[str, Any], model: AdaptedModel) -> None:
    """Raise :class:`UserError` when the recipe was made for a model of another shape."""
    made = made_with.get("model") or {}
    for name in _SIZES:
        if name in made and made[name] != getattr(model, name):
            raise UserError(
                f"This recipe was made for {made.get('name', 'a model')} with {name} {made[name]}, but "
                f"{model.name} has {getattr(model, name)}: it does not fit."
            )


def _provenance(model: AdaptedModel | None) -> dict[str, Any]:
    from workbench import __version__

    made: dict[str, Any] = {
        "tunescope": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if model is not None:
        sizes = {name: getattr(model, name) for name in _SIZES}
        made["model"] = {"name": model.name, "identity": model.identity.hash, **sizes}
    return made


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not is_file(path):
        raise UserError(f"There is no recipe at {path}: give the .safetensors file that Recipe.save wrote.")
    with path.open("rb") as file:
        start = file.read(9)
    # a safetensors file begins with the length of its header, whose first byte may be any multiple of 8
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
        raise UserError(f"{path} is a pickle, which could run code when read: recipes are .safetensors files.")
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get("tunescope")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): copy or save it again.") from None
    check_seal(path, "restore it, or save the recipe again")
    if text is None:
        raise UserError(f"{path} is a safetensors file but no recipe: its metadata has no key 'tunescope'.")
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} does not hold readable JSON under 'tunescope': save the recipe again.") from None
    made = note.get("made_with", {}) if isinstance(note, dict) else None
    if not isinstance(made, dict) or not isinstance(made.get("model") or {}, dict):
        raise UserError(f"{path} does not hold a recipe under 'tunescope': save the recipe again.")
    return {"made_with": {}, **note}, tensors


def _entries(path: Path, note: dict[str, Any]) -> list[dict[str, Any]]:
    version, entries = note.get("version"), note.get("interventions")
    if isinstance(version, bool) or not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"{path} is a recipe of version {version}, and this Tunescope reads up to {VERSION}: update Tunescope."
        )
    for key in note:
        if key not in _KEYS:
            raise unknown_name("key in the recipe file", key, _KEYS)
    if not isinstance(entries, list):
        raise UserError(f"{path} has no list of interventions: it is not a recipe.")
    return entries


def _intervention(path: Path, place: int, entry: Any, tensors: dict[str, Tensor]) -> Intervention:
    """The intervention of one entry; its tensors are taken out of ``tensors``."""
    if not isinstance(entry, dict) or set(entry) != {"kind", "settings"} or not isinstance(entry["settings"], dict):
        raise UserError(f"Intervention {place} of {path} is not {{kind, settings}}: it is not a recipe.")
    prefix = f"{place}."
    names = [name for name in tensors if name.startswith(prefix)]
    own = {name.removeprefix(prefix): tensors.pop(name) for name in names}
    kind = kind_named(str(entry["kind"]))
    try:
        check_plain_settings(kind, entry["settings"])
        intervention = kind.from_tensors(entry["settings"], own)
        hash(intervention)
    except _WRONG as error:
        said = f"{type(error).__name__}: {str(error)[:120]}" if str(error) else type(error).__name__
        raise UserError(
            f"Intervention {place} of {path} ({kind.__name__}) has a setting of a wrong type ({said}): save the recipe "
            "again."
        ) from error
    if unused := sorted(set(own) - set(intervention.to_tensors()[1])):
        raise UserError(f"{path} holds a tensor {prefix}{unused[0]} that its {intervention.kind} does not use.")
    return intervention


_WRONG = (
    TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError, AssertionError, RuntimeError,
    RecursionError,
)  # fmt: skip
"""What making an intervention of settings of a wrong type raises."""


def check_plain_settings(kind: type[Intervention], settings: Mapping[str, Any]) -> None:
    """Raise a TypeError where a setting that is a word, or true or false, is something else."""
    hints = get_type_hints(kind)
    for name, value in settings.items():
        hint = hints.get(name)
        if hint is bool and not isinstance(value, bool):
            raise TypeError(f"{name} is {type(value).__name__}, not true or false")
        if (hint is str or get_origin(hint) is Literal) and not isinstance(value, str):
            raise TypeError(f"{name} is {type(value).__name__}, not a word")
        if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is {type(value).__name__}, not a whole number")


def check_identity(made_with: Mapping[str, Any], model: AdaptedModel, strict: bool) -> None:
    made = made_with.get("model") or {}
    if "identity" not in made or made["identity"] == model.identity.hash:
        return
    warning = f"This recipe was made on other weights ({made.get('name')}) than those of {model.name}"
    if strict:
        raise UserError(f"{warning}: load it on the model it was made on, or without strict.")
    warnings.warn(f"{warning}; it fits by shape, its effect may differ.", OtherModelWarning, stacklevel=4)
