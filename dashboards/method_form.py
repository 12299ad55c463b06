"""The options of a registered method as widgets, and why it cannot run yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import panels
from workbench.errors import UserError
from workbench.method_options import Option
from workbench.methods import Method

if TYPE_CHECKING:
    from workbench.prompts import Prompts

_UNCHOSEN = ""
_OF_FILES = ("python", "prompts", "prompt sets", "needles")
"""Kinds of option that a form cannot ask for."""
SHOWN_FIRST = 4
"""Options that stand open; the others are behind "More options"."""


def ask(method: Method) -> dict[str, Any]:
    """Option -> value of what a person chose, in the plain values of an experiment file.

    Raises:
        UserError: A text is not what its option takes.
    """
    options = [option for option in method.options if option.kind not in _OF_FILES]
    first = [option for option in options if option.required] or options[:SHOWN_FIRST]
    rest = [option for option in options if option not in first]
    values = _row(method, first)
    if rest:
        with st.expander("More options", icon=":material/tune:"):
            values |= _row(method, rest)
    return values


def reason_against(method: Method, models: tuple[str, str], prompts: Prompts | None, options: dict[str, Any]) -> str:
    """Why the method cannot run, in one sentence; empty where it can.

    Args:
        method: From the registry.
        models: Folder or hub id of base and tuned model; empty where there is none yet.
        prompts: The rows; None where there are none yet.
        options: What the form holds.
    """
    if not models[0]:
        return "Give a base model first: a folder, a hub id, or the name of an organism."
    if prompts is None and not {"prompts", "recording"}.isdisjoint(method.arguments):
        columns = f" with {', '.join(method.needs.columns)}" if method.needs.columns else ""
        return f"This needs prompts{columns}."
    files = [option.name for option in method.options if option.required and option.kind in _OF_FILES]
    if files:
        return f"This needs files ({', '.join(files)}): use the command line, tunescope localize {method.name}."
    empty = [option.name for option in method.options if option.required and option.name not in options]
    if empty:
        return f"Fill in {', '.join(name.replace('_', ' ') for name in empty)} first."
    return _unfit(method, models, prompts, options)


def _unfit(method: Method, models: tuple[str, str], prompts: Prompts | None, options: dict[str, Any]) -> str:
    """What the models' folders and the prompts' columns say against it."""
    from tunescope.experiments.inputs import PairSpec
    from tunescope.experiments.requirements import check_columns, check_pair

    try:
        check_pair(method, PairSpec(base=models[0], tuned=models[1]))
        if prompts is not None:
            defaults = {option.name: option.default for option in method.options}
            check_columns(method, prompts, {**defaults, **options})
    except UserError as error:
        return str(error)
    return ""


def _row(method: Method, options: list[Option]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number in range(0, len(options), SHOWN_FIRST):
        row = options[number : number + SHOWN_FIRST]
        for place, option in zip(st.columns(SHOWN_FIRST), row, strict=False):
            with place:
                value = _widget(method, option)
            if value is not None and value != option.default:
                values[option.name] = value
    return values


def _widget(method: Method, option: Option) -> Any:
    """One option; None where it was left alone."""
    key, label = f"option-{method.name}-{option.name}", option.name.replace("_", " ")
    help_text = panels.visible(option.help.replace("``", ""))
    if option.kind == "flag":
        return st.toggle(label, bool(option.default), key=key, help=help_text)
    if option.kind == "choice":
        choices = [*([_UNCHOSEN] if option.default is None else []), *option.choices]
        at = choices.index(str(option.default)) if option.default is not None else 0
        return st.selectbox(label, choices, at, key=key, help=help_text) or None
    if option.kind == "integer":
        low = None if option.minimum is None else int(option.minimum)
        return st.number_input(label, low, None, option.default, 1, key=key, help=help_text, placeholder="default")
    if option.kind == "number":
        default = None if option.default is None else float(option.default)
        return st.number_input(label, value=default, format="%g", key=key, help=help_text, placeholder="default")
    return _text(option, label, key, help_text)


def _text(option: Option, label: str, key: str, help_text: str) -> Any:
    from tunescope.experiments.option_types import value_of

    default = option.default
    shown = ", ".join(map(str, default)) if isinstance(default, list | tuple) else str(default or "")
    text = st.text_input(label, key=key, help=help_text, placeholder=shown or "default").strip()
    if not text:
        return None
    try:
        return value_of(option, text)
    except ValueError as error:
        raise UserError(f"{label}: {error}") from None
