"""A recipe from whichever file holds it."""

from __future__ import annotations

from pathlib import Path

from interventions.exchange.control_vectors import from_gguf
from interventions.recipe import Recipe


def load_recipe(file: Path) -> Recipe:
    """A recipe from its own file, or from a GGUF control vector."""
    return from_gguf(file) if file.suffix.lower() == ".gguf" else Recipe.load(file)
