"""What a function was given to work on, checked before it starts: a pair, a model of ours, a recording, its options."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from workbench.errors import UserError, unknown_name

Options = TypeVar("Options")


def read_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """Keyword arguments as a ``kind``, a dataclass. Raises :class:`UserError` naming the closest option when one is
    unknown."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    return kind(**options)


def check_labels(labels: Sequence[Any], fewest: int) -> None:
    """Raise :class:`UserError` unless every row has a label, of two classes or more, each with ``fewest`` rows."""
    missing = [number for number, label in enumerate(labels) if label is None or label != label]
    if missing:
        raise UserError(f"Row {missing[0]} has no label ({len(missing)} in all lack one); a probe needs every label.")
    counts = Counter(str(label) for label in labels)
    if len(counts) < 2:
        only = next(iter(counts), "")
        raise UserError(f"All {len(labels)} rows have the label {only!r}: give rows of two or more classes.")
    few = min(sorted(counts), key=lambda name: counts[name])
    if counts[few] < fewest:
        rows = f"{counts[few]} row" + "s" * (counts[few] != 1)
        raise UserError(f"The class {few!r} has {rows} and a probe needs {fewest}: give more of it.")


def check_pair(pair: Any, prompts: Any = None) -> None:
    """Raise :class:`UserError` unless ``pair`` has both models side by side, and both can read ``prompts``."""
    if not _is_pair(pair):
        raise UserError(
            f"Both models are needed side by side, and {_said(pair)} was given: give what load_pair(base, tuned) "
            "returns."
        )
    _check_readable({"base": pair.base, "tuned": pair.tuned}, prompts)


def check_subject(subject: Any, prompts: Any = None) -> None:
    """Raise :class:`UserError` unless ``subject`` is a pair or one model of ours, and can read ``prompts``."""
    from workbench.models.adapted import AdaptedModel

    if not _is_pair(subject) and not isinstance(subject, AdaptedModel):
        raise UserError(
            f"A pair or a model is needed, and {_said(subject)} was given: give what load_pair(base, tuned) or "
            "load_model(model) returns."
        )
    models = {"base": subject.base, "tuned": subject.tuned} if _is_pair(subject) else {subject.role: subject}
    _check_readable(models, prompts)


def _check_readable(models: dict[str, Any], prompts: Any) -> None:
    if prompts is not None:
        from workbench.models.token_rows import check_prompts

        check_prompts(prompts, models)


def check_recording(recording: Any) -> None:
    """Raise :class:`UserError` unless ``recording`` is a recording."""
    from workbench.recording.recording import Recording

    if not isinstance(recording, Recording):
        raise UserError(
            f"A recording is read here, and {_said(recording)} was given: give what record(pair, prompts, sites) "
            "returns."
        )


def _is_pair(value: Any) -> bool:
    return hasattr(value, "base") and hasattr(value, "tuned")


def _said(value: Any) -> str:
    name = type(value).__name__
    return f"the text {value!r}" if isinstance(value, str) else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
