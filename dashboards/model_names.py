"""How a model is called where its whole path is too long."""

from __future__ import annotations

from pathlib import Path


def short(model: str, beside: str = "") -> str:
    """The last part of a path or hub id; with the folder before it where it says nothing by itself (``.../tuned``) and
    that is not also the folder of ``beside``."""
    path = Path(model)
    if path.name in ("base", "tuned", "adapter", "model") and path.parent.name and path.parent != Path(beside).parent:
        return f"{path.parent.name}/{path.name}"
    return path.name or model
