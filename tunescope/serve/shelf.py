"""Recipes by name, read again where their file changed, so that they are swapped while the server runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from interventions.exchange.reading import load_recipe
from interventions.recipe import Recipe
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel

ENDINGS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class _Read:
    stamp: tuple[int, int]
    recipe: Recipe


class Shelf:
    """The recipes of files and of folders; the name is the file's, without its ending."""

    def __init__(self, places: list[Path], sides: Mapping[str, AdaptedModel]) -> None:
        """Reads every recipe once. Raises :class:`UserError` for one that cannot be read or fits no side, and for two
        of one name."""
        self._places, self._sides = places, sides
        self._known: dict[str, _Read] = {}
        for place in places:
            if not place.exists():
                raise UserError(f"There is no file or folder {place}: give recipes that exist.")
        for name in self.names():
            self.get(name)

    def names(self) -> list[str]:
        """What is there now, sorted."""
        return sorted(self._files())

    def get(self, name: str) -> Recipe:
        """The recipe of that name as its file is now. Raises :class:`UserError` where there is none."""
        files = self._files()
        if name not in files:
            raise unknown_name("recipe", name, files)
        status = files[name].stat()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(name)
        if known is None or known.stamp != stamp:
            recipe = load_recipe(files[name])
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
        found: dict[str, Path] = {}
        for place in self._places:
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
            for file in (one for one in inside if one.suffix.lower() in ENDINGS and one.is_file()):
                if found.setdefault(file.stem, file) != file:
                    raise UserError(
                        f"Two recipes are called {file.stem!r}: rename one of {found[file.stem]} and {file}."
                    )
        return found
