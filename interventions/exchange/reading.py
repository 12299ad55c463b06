"""A recipe from whichever file holds it, or from a line written with the names of a book."""

from __future__ import annotations

from pathlib import Path

from interventions.exchange.control_vectors import from_gguf
from interventions.line_or_file import is_line, recipe_name
from interventions.one_line import recipe_from_text
from interventions.recipe import Recipe
from interventions.recipe_book import RecipeBook


def load_recipe(given: str | Path, book: RecipeBook | None = None) -> Recipe:
    """A recipe from its own file, from a GGUF control vector, or from one line.

    Args:
        given: A file, or a line such as ``0.5*formal - 0.2*verbose @generated`` with the names of ``book``.
        book: By default the workspace's, see :class:`RecipeBook`.

    Raises:
        UserError: What cannot be read; of a line it says at which sign, and the closest name.
    """
    if is_line(given):
        return recipe_from_text(str(given), RecipeBook() if book is None else book)
    file = Path(given)
    return from_gguf(file) if file.suffix.lower() == ".gguf" else Recipe.load(file)


__all__ = ["is_line", "load_recipe", "recipe_name"]
