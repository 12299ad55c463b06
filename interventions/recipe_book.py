"""A book of named recipes: one folder per workspace, whose names one-line recipes are written with."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from interventions.exchange.control_vectors import from_gguf
from interventions.one_line import KEYWORDS
from interventions.recipe import Recipe
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel

VARIABLE = "TUNESCOPE_BOOK"
"""Environment variable: the folder of the book, taken instead of ``recipes`` in the workspace."""
FOLDER = "recipes"
_NAME = re.compile(r"[A-Za-z_](?:[\w.]|-(?=[A-Za-z_]))*")
_ENDINGS = (".safetensors", ".gguf")


class RecipeBook(Mapping[str, Recipe]):
    """Recipes by the names of their files in a folder; each is read when it is asked for.

    Args:
        folder: The book's folder; by default ``$TUNESCOPE_BOOK``, else ``recipes`` in the workspace (current folder).

    Example:
        ``recipe_from_text("0.5*formal - 0.2*verbose @generated", RecipeBook())``
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder or os.environ.get(VARIABLE) or FOLDER)

    def __getitem__(self, name: str) -> Recipe:
        files = self._files()
        if name not in files:
            raise KeyError(name)
        file = files[name]
        return from_gguf(file) if file.suffix == ".gguf" else Recipe.load(file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files())

    def __len__(self) -> int:
        return len(self._files())

    def __contains__(self, name: object) -> bool:
        return name in self._files()

    def __repr__(self) -> str:
        return f"RecipeBook({str(self.folder)!r}: {', '.join(self) or 'empty'})"

    def file(self, name: str) -> Path | None:
        """The file that holds a name's recipe; None where there is none."""
        return self._files().get(name)

    def _files(self) -> dict[str, Path]:
        if not self.folder.is_dir():
            return {}
        files = [
            path for path in sorted(self.folder.iterdir()) if path.suffix in _ENDINGS and _NAME.fullmatch(path.stem)
        ]
        return {file.stem: file for file in files}

    def keep(self, name: str, recipe: Recipe, model: AdaptedModel | None = None) -> Path:
        """Write ``recipe`` into the book under a name; ``model`` is the one it was made on.

        Raises:
            UserError: The name cannot stand in a line, or is taken.
        """
        if name in KEYWORDS:
            raise UserError(f"{name!r} is a word of the grammar of lines: take another name.")
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be a name in a line: begin with a letter, go on with letters, digits, _ and dots."
            )
        if name in self:
            raise UserError(f"The book {self.folder} has a {name!r} already: drop that, or take another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        return recipe.save(self.folder / f"{name}.safetensors", model=model)

    def drop(self, name: str) -> None:
        """Delete a recipe from the book.

        Raises:
            UserError: The book has none of that name.
        """
        files = self._files()
        if not files:
            raise UserError(f"The book {self.folder} is empty: keep a recipe in it first.")
        if name not in files:
            raise unknown_name("recipe of the book", name, files)
        files[name].unlink()
