"""``Experiment``: what ``experiment.yaml`` holds, checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from tunescope.experiments.inline import RecipeSpec
from tunescope.experiments.inputs import PairSpec, PromptSet
from tunescope.experiments.steps import AnyStep
from tunescope.experiments.strict import MOST_SEED, Strict, explained, refusal
from tunescope.experiments.yaml_text import read_yaml, write_yaml
from workbench.errors import UserError
from workbench.files import file_text, is_file, write_text

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$"


class Experiment(Strict):
    """Pair, prompts, recipes, steps, and the grid over which they are repeated.

    Made from keyword arguments (a mistake is pydantic's ``ValidationError``), or read with :meth:`load` and
    :meth:`parse`, which answer with one sentence.
    """

    name: str = Field(pattern=_NAME)
    about: str = ""
    """A sentence for the report."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Of splits, draws and intervals; a step may have its own."""
    pair: PairSpec
    prompts: dict[str, PromptSet] = Field(default={})
    """Named sets. In YAML a single set may stand here without a name; it is then called ``prompts``."""
    recipes: dict[str, RecipeSpec] = Field(default={})
    steps: dict[str, AnyStep] = Field(min_length=1)
    """In this order; a step may use what earlier ones found."""
    sweep: dict[str, list[Any]] = Field(default={})
    """Dotted path -> values: ``seed``, ``pair.seed``, ``steps.knob.layers``, ``recipes.off.strength``."""
    tracker: Literal["mlflow", "wandb"] | None = None

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_set(cls, entries: Any) -> Any:
        if isinstance(entries, Mapping) and not isinstance(next(iter(entries.values()), None), PromptSet):
            keys = set(PromptSet.model_fields)
            if any(key in keys or not isinstance(value, Mapping) for key, value in entries.items()):
                return {"prompts": entries}
        return entries

    @field_validator("prompts", "recipes", "steps")
    @classmethod
    def _plain_names(cls, entries: dict[str, Any]) -> dict[str, Any]:
        import re

        for name in entries:
            if not re.match(_NAME, name):
                raise refusal(f"the name {name!r} is not plain: letters, digits, - and _, at most 60.", name)
        return entries

    @model_validator(mode="after")
    def _whole(self) -> Experiment:
        from tunescope.experiments.references import check_references
        from tunescope.experiments.sweeping import check_sweep

        check_references(self)
        check_sweep(self)
        return self

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Read a YAML file. Raises :class:`UserError` naming the file, the key and what is wrong."""
        file = Path(path)
        if not is_file(file):
            raise UserError(f"There is no file {file}: give the experiment's .yaml file.")
        try:
            text = file_text(file)
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no text file (UTF-8): give the experiment's .yaml file.") from error
        return cls.parse(text, str(file))

    @classmethod
    def parse(cls, text: str, name: str = "experiment") -> Experiment:
        """Read YAML text; ``name`` is how errors call it."""
        return cls.of(read_yaml(text, name), name)

    @classmethod
    def of(cls, values: Any, name: str = "experiment") -> Experiment:
        """From plain values, as YAML holds them."""
        if not isinstance(values, Mapping):
            raise UserError(f"{name} holds no keys at its top level: an experiment begins with  name: ...")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explained(error, values, name) from None

    def pair_of(self, step: str) -> PairSpec:
        """The models of a step: those of the recording that it reads, else its own, else the experiment's."""
        record = getattr(self.steps[step], "record", None)
        return self.pair_of(record) if record is not None else self.steps[step].pair or self.pair

    def to_yaml(self) -> str:
        """The file's text; :meth:`parse` gives an equal experiment."""
        return write_yaml(self.plain())

    def save(self, path: str | Path) -> Path:
        """Write :meth:`to_yaml`, whole or not at all."""
        write_text(Path(path), self.to_yaml())
        return Path(path)
