"""Any registered intervention as a part of a recipe, of ours or of a plug-in: its form is made from its class."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import panels
from workbench.errors import UserError

if TYPE_CHECKING:
    from interventions.recipe import Recipe
    from workbench.method_index import Entry
    from workbench.models.pair import ModelPair


@dataclass(frozen=True)
class Registered:
    """One intervention, written as an experiment file writes it."""

    kind: str
    settings: str
    """Field -> value as JSON."""

    def inline(self) -> dict[str, Any]:
        """As an experiment file holds it."""
        return {"kind": self.kind, **json.loads(self.settings)}

    def label(self) -> str:
        said = ", ".join(f"{name} {_short(value)}" for name, value in json.loads(self.settings).items())
        return f"{self.kind}({said})"

    def python(self) -> str:
        return f"recipe_of([{self.inline()!r}], pair)"

    def made(self, pair: ModelPair) -> Recipe:
        from tunescope.experiments.recipes import recipe_of

        return recipe_of([self.inline()], pair)

    @property
    def has_strength(self) -> bool:
        return True


def ask_registered() -> list[Registered]:
    """Draw the form; the part that is filled in, if any.

    Raises:
        UserError: A value is none that its field takes.
    """
    from tunescope.experiments.inline import WRITTEN
    from workbench.method_index import index

    entries = [entry for entry in index().entries if entry.kind == "intervention" and entry.function not in WRITTEN]
    questions = {entry.function: entry for entry in entries}
    kind = st.selectbox(
        "Intervention", list(questions), index=None, key="registered", placeholder="None",
        format_func=lambda name: f"{name}: {panels.visible(questions[name].question)}",
    )  # fmt: skip
    return [] if kind is None else [_filled(questions[kind])]


def _filled(entry: Entry) -> Registered:
    from tunescope.experiments.derived_interventions import derived_spec

    spec = derived_spec(entry.function)
    values: dict[str, Any] = {}
    names = [name for name in spec.kinds if name != "strength"]
    for start in range(0, len(names), 4):
        for column, name in zip(st.columns(4), names[start : start + 4], strict=False):
            field = spec.model_fields[name]
            key, shown = f"registered-{entry.function}-{name}", name.replace("_", " ")
            default = "" if field.is_required() else _short(field.default)
            with column:
                text = _text(shown, key, spec.kinds[name], default)
            if text:
                values[name] = _value(text, spec.kinds[name])
    missing = [name for name, field in spec.model_fields.items() if field.is_required() and name not in values]
    if missing:
        raise UserError(f"{entry.function} needs {', '.join(missing)}.")
    return Registered(entry.function, json.dumps(values))


def _text(label: str, key: str, kind: str, default: str) -> str:
    helps = {
        "tensor": "A file that holds it (v.safetensors, or v.safetensors:name), or numbers as [1, 2].",
        "tensors": 'A mapping, as {"L1H2": [1, 2]}.',
        "model": "base or tuned.",
    }
    return st.text_input(label, key=key, placeholder=default or "needed", help=helps.get(kind)).strip()


def _value(text: str, kind: str) -> Any:
    """What is written, as JSON where it is JSON, else as text; a tensor by its file."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    if kind != "tensor":
        return text
    file, sign, name = text.rpartition(".safetensors:")
    source = {"file": f"{file}.safetensors", "tensor": name} if sign else {"file": text}
    return {**source, "file": str(Path(source["file"]).expanduser().resolve())}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return panels.visible(text if len(text) <= 40 else f"{text[:39]}…")
