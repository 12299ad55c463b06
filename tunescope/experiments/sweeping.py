"""The grid: dotted paths into an experiment, their values, and one experiment per cell."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunescope.experiments.strict import explained, refusal, unknown
from workbench.errors import UserError

if TYPE_CHECKING:
    from tunescope.experiments.schema import Experiment

MOST_CELLS = 10_000
_NOT_SWEPT = ("name", "about", "sweep", "tracker")


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its number, its settings, and the experiment with these settings in place."""

    number: int
    settings: Mapping[str, Any]
    experiment: Experiment

    @property
    def folder(self) -> str:
        """Its folder below the run's: the number, and a hash of the settings."""
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode()).hexdigest()
        return f"cells/{self.number:04d}-{digest[:8]}"

    @property
    def label(self) -> str:
        """The settings on one line, without the words recipes and steps in front."""
        short = {path.removeprefix("recipes.").removeprefix("steps."): value for path, value in self.settings.items()}
        return ", ".join(f"{path}={shown(value)}" for path, value in short.items()) or "the only cell"


def shown(value: Any) -> str:
    """A setting as text: plain for one value, JSON for lists and mappings."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cells(experiment: Experiment) -> list[Cell]:
    """Every cell of the grid, the last path varying fastest; one without settings where there is no sweep."""
    paths = list(experiment.sweep)
    grid = []
    for number, values in enumerate(itertools.product(*experiment.sweep.values())):
        settings = dict(zip(paths, values, strict=True))
        grid.append(Cell(number, settings, _with(experiment, settings)))
    return grid


def check_sweep(experiment: Experiment) -> None:
    """Raise an error with the place of the first path or value that does not fit."""
    count = math.prod(len(values) for values in experiment.sweep.values())
    if count > MOST_CELLS:
        raise refusal(f"spans {count} cells, more than {MOST_CELLS}; sweep fewer values at once.", "sweep")
    for path, values in experiment.sweep.items():
        if not values:
            raise refusal("has no values; give a list of them, or leave it out.", "sweep", path)
        texts = [json.dumps(value, sort_keys=True) for value in values]
        if len(set(texts)) < len(texts):
            raise refusal("names a value twice; every cell needs its own.", "sweep", path)
        for number, value in enumerate(values):
            try:
                _with(experiment, {path: value})
            except UserError as error:
                raise refusal(str(error), "sweep", path, number) from None
    for _ in _pairs(experiment):
        pass


def _pairs(experiment: Experiment) -> Iterator[None]:
    """Paths that overlap, such as ``steps.a`` and ``steps.a.k``, would overwrite each other."""
    for outer, other in itertools.permutations(experiment.sweep, 2):
        if other.startswith(f"{outer}."):
            raise refusal(f"lies inside {outer!r}, which is swept too; give one of them.", "sweep", other)
        yield


def _with(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    values = deepcopy({key: value for key, value in experiment.plain().items() if key != "sweep"})
    for path, value in settings.items():
        _put(values, path, value)
    try:
        return type(experiment).model_validate(values)
    except ValidationError as error:
        name = ", ".join(f"{path}={shown(value)}" for path, value in settings.items()) or "experiment"
        raise explained(error, values, name) from None


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    parts = path.split(".")
    if parts[0] in _NOT_SWEPT:
        raise UserError(f"{parts[0]} cannot be swept.")
    at: Any = values
    for number, part in enumerate(parts[:-1]):
        at = _below(at, part, parts[: number + 1])
    last = parts[-1]
    if isinstance(at, list) and not last.isdigit():
        at = _whole_recipe(values, parts)
    if isinstance(at, list):
        if int(last) >= len(at):
            raise UserError(f"{path} has no number {last}; it counts from 0 to {len(at) - 1}.")
        at[int(last)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise UserError(f"{'.'.join(parts[:-1])} is one value, with nothing below it.")


def _below(at: Any, part: str, path: list[str]) -> Any:
    if isinstance(at, dict):
        if part.isdigit() and part not in at and "interventions" in at:
            at = at["interventions"]  # the number of an intervention, as in the short form
        elif part in at:
            return at[part]
        elif path[0] == "pair" or len(path) > 2:
            return at.setdefault(part, {})
        else:
            raise UserError(unknown(f"key {part!r} in {'.'.join(path)}", part, [str(key) for key in at]))
    if isinstance(at, list) and part.isdigit() and int(part) < len(at):
        return at[int(part)]
    raise UserError(f"{'.'.join(path)} leads nowhere: write the names as in the file, and numbers for list entries.")


def _whole_recipe(values: dict[str, Any], parts: list[str]) -> Any:
    """A recipe in its short form, a list, becomes the long form, which has a strength."""
    if parts[0] != "recipes" or len(parts) != 3:
        raise UserError(f"{'.'.join(parts[:-1])} is a list: give a number for its entry.")
    values["recipes"][parts[1]] = {"interventions": values["recipes"][parts[1]]}
    return values["recipes"][parts[1]]


def scalar(value: Any) -> Any:
    """A setting as a cell of a table."""
    return value if isinstance(value, bool | int | float | str) else shown(value)
