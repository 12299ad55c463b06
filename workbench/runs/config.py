"""Configurations as plain JSON: when two are the same, and where they first differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.jsonable import jsonable


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` as it reads back from a JSON file, so that a fresh one and a stored one compare equal."""
    return json.loads(json.dumps(jsonable(config, "config"), allow_nan=False))


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the configuration's content; the order of keys does not enter."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()


def first_difference(stored: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first differing key (in alphabetical order) with both values; None when
    equal."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in sorted(stored.keys() | wanted.keys()):
            inner = f"{key}.{name}" if key else str(name)
            if difference := first_difference(stored.get(name), wanted.get(name), inner):
                return difference
        return None
    return None if stored == wanted else (key, stored, wanted)


def same_config(stored: Mapping[str, Any], wanted: Mapping[str, Any], place: Path) -> None:
    """Raise :class:`UserError` naming the first differing key when ``place`` holds another configuration."""
    if difference := first_difference(plain(stored), plain(wanted)):
        key, before, now = difference
        raise UserError(
            f"{place} holds results of another configuration: {key!r} is {_short(before)} there and "
            f"{_short(now)} here; give another folder, or remove that one."
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
