"""Recipes by name, read again where their file changed, so that they are swapped while the server runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from interventions.exchange.reading import load_recipe
from interventions.line_or_file import ENDINGS, is_line
from interventions.one_line import recipe_from_text
from interventions.recipe import Recipe
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel


@dataclass(frozen=True)
class _Read:
    stamp: tuple[int, int]
    recipe: Recipe


class ServedRecipes(Mapping[str, Recipe]):
    """The recipes of files, of folders and of lines; the name is the file's, without its ending, or the line itself.

    A line among ``places`` is written with the names of the workspace's book, a request's own line with those served.
    """

    def __init__(self, places: list[Path], sides: Mapping[str, AdaptedModel]) -> None:
        """Reads every recipe once. Raises :class:`UserError` for one that cannot be read or fits no side, and for two
        of one name."""
        self._lines = [str(place) for place in places if is_line(place)]
        self._places, self._sides = [place for place in places if not is_line(place)], sides
        self._known: dict[str, _Read] = {}
        for place in self._places:
            if not place.exists():
                raise UserError(f"There is no file or folder {place}: give recipes that exist.")
        for name in self.names():
            self.named(name)

    def names(self) -> list[str]:
        """What is there now, sorted."""
        return sorted([*self._files(), *self._lines])

    def named(self, text: str) -> Recipe:
        """The recipe of a name, as its file is now, or of a line such as ``0.5*formal - verbose``.

        Raises:
            UserError: There is no such name, or the line breaks the grammar.
        """
        if text in self._files():
            return self[text]
        if text not in self._lines and re.fullmatch(r"[\w.-]+", text):
            raise unknown_name("recipe", text, self.names())
        recipe = load_recipe(text) if text in self._lines else recipe_from_text(text, self)
        recipe = recipe.with_models_of(self._sides.values())
        self._check(recipe, text)
        return recipe

    def __iter__(self) -> Iterator[str]:
        return iter(self._files())

    def __len__(self) -> int:
        return len(self._files())

    def __getitem__(self, name: str) -> Recipe:
        files = self._files()
        if name not in files:
            raise KeyError(name)
        status = files[name].stat()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(name)
        if known is None or known.stamp != stamp:
            recipe = load_recipe(files[name]).with_models_of(self._sides.values())
            self._check(recipe, name)
            known = self._known[name] = _Read(stamp, recipe)
        return known.recipe

    def _check(self, recipe: Recipe, name: str) -> None:
        """It must fit the side that is steered where a request does not say another: the last one."""
        try:
            recipe.check(list(self._sides.values())[-1])
        except UserError as error:
            raise UserError(f"The recipe {name!r} cannot be served: {error}") from error

    def _files(self) -> dict[str, Path]:
        by_name: dict[str, Path] = {}
        for place in self._places:
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
            for file in (path for path in inside if path.suffix.lower() in ENDINGS and path.is_file()):
                if by_name.setdefault(file.stem, file) != file:
                    raise UserError(
                        f"Two recipes are called {file.stem!r}: rename one of {by_name[file.stem]} and {file}."
                    )
        return by_name
