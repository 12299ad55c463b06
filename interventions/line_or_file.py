"""Tells a recipe in one line from a recipe's file, without importing anything heavy."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".safetensors", ".gguf")
"""What a recipe's file ends with."""


def is_line(text: str | Path) -> bool:
    """Whether this is a line such as ``0.5*formal - verbose @generated`` rather than a file's name."""
    file = Path(text)
    return not (file.suffix.lower() in ENDINGS or file.exists() or len(file.parts) > 1)


def recipe_name(text: str | Path) -> str:
    """What tables call it: the line itself, or the file's name without its ending."""
    return str(text) if is_line(text) else Path(text).stem
