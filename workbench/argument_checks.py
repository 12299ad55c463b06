"""What a function was given to work on, checked before it starts: a pair, a model of ours, a recording, its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from workbench.errors import UserError, unknown_name

Options = TypeVar("Options")


def read_options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Keyword arguments as a ``kind``, a dataclass. Raises :class:`UserError` naming the closest option when one is
    unknown."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise unknown_name("option", name, known)
    return kind(**given)


def check_pair(given: Any, prompts: Any = None) -> None:
    """Raise :class:`UserError` unless ``given`` has both models side by side, and both can read ``prompts``."""
    if not _is_pair(given):
        raise UserError(
            f"Both models are needed side by side, and {_said(given)} was given: give what load_pair(base, tuned) "
            "returns."
        )
    _check_readable({"base": given.base, "tuned": given.tuned}, prompts)


def check_subject(given: Any, prompts: Any = None) -> None:
    """Raise :class:`UserError` unless ``given`` is a pair or one model of ours, and can read ``prompts``."""
    from workbench.models.adapted import AdaptedModel

    if not _is_pair(given) and not isinstance(given, AdaptedModel):
        raise UserError(
            f"A pair or a model is needed, and {_said(given)} was given: give what load_pair(base, tuned) or "
            "load_model(model) returns."
        )
    _check_readable({"base": given.base, "tuned": given.tuned} if _is_pair(given) else {given.role: given}, prompts)


def _check_readable(models: dict[str, Any], prompts: Any) -> None:
    if prompts is not None:
        from workbench.models.token_rows import check_prompts

        check_prompts(prompts, models)


def check_recording(given: Any) -> None:
    """Raise :class:`UserError` unless ``given`` is a recording."""
    from workbench.recording.recording import Recording

    if not isinstance(given, Recording):
        raise UserError(
            f"A recording is read here, and {_said(given)} was given: give what record(pair, prompts, sites) returns."
        )


def _is_pair(given: Any) -> bool:
    return hasattr(given, "base") and hasattr(given, "tuned")


def _said(given: Any) -> str:
    name = type(given).__name__
    return f"the text {given!r}" if isinstance(given, str) else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
