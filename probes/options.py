"""Keyword options of a probe, read into a dataclass so that a typo is answered with the closest name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from workbench.errors import unknown_name

Options = TypeVar("Options")


def read_options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """``given`` as a ``kind``. Raises :class:`UserError` naming the closest option when one is unknown."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise unknown_name("option", name, known)
    return kind(**given)
