"""A step's folder in the run: its table, its metrics, its result, and last of all the mark that it is whole."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tunescope.experiments import references, steps
from tunescope.experiments.materials import Materials
from tunescope.experiments.method_steps import MethodStep
from workbench.errors import UserError
from workbench.files import DamagedWarning
from workbench.runs.manifest import hash_file
from workbench.sealed_json import read_sealed, write_sealed

if TYPE_CHECKING:
    from tunescope.experiments.schema import Experiment
    from workbench.runs import Run

ACTIVATIONS = "activations"
RESULT = "result.safetensors"
MARK = "step.json"
METRIC_COLUMNS = (
    "of", "strength", "metric", "estimate", "low", "high", "n", "control", "q", "change", "change_low", "change_high",
)  # fmt: skip
"""``of``: a model, or a cell such as L1H0; ``change`` is against that model without the recipe, paired by prompt."""
_NUMBERS = tuple(name for name in METRIC_COLUMNS if name not in ("of", "metric"))


@dataclass(frozen=True)
class Outcome:
    """What a step leaves."""

    summary: str
    """A line for people."""
    table: pd.DataFrame
    metrics: pd.DataFrame
    result: Any = None
    """The result as Python has it, where there is one."""
    more: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Further tables by name."""


@dataclass(frozen=True)
class Kept:
    """The place of one step with one content: the same for all cells in which nothing that it reads differs."""

    run: Run
    name: str
    key: str

    @property
    def folder(self) -> str:
        """Below the run's folder."""
        return f"steps/{self.name}-{self.key[:10]}"

    @property
    def path(self) -> Path:
        return self.run.file(self.folder)

    @property
    def is_whole(self) -> bool:
        """Whether the step was finished here, and every file of it is what was written then.

        Where one is not, the step is done again, with a warning that names the file.
        """
        mark = self.path / MARK
        if not mark.is_file():
            return False
        try:
            self._check(read_sealed(mark, "the step is done again"))
        except UserError as error:
            warnings.warn(f"{str(error).partition(';')[0]}; the step {self.name} is done again.", DamagedWarning, 2)
            mark.unlink()
            return False
        return True

    def _check(self, note: Mapping[str, Any]) -> None:
        if note.get("key") != self.key:
            raise UserError(f"{self.path / MARK} is damaged: it is of another step; ")
        for name, digest in note.get("files", {}).items():
            path = self.run.file(f"{self.folder}/{name}")
            if not path.is_file() or hash_file(path).sha256 != digest:
                raise UserError(f"{path} is not what was written (sha256 differs); ")
        if (self.path / ACTIVATIONS).is_dir():
            from workbench.recording.recording import Recording

            Recording.load(self.path / ACTIVATIONS)

    def write(self, do: str, outcome: Outcome) -> None:
        """Write everything, the mark last."""
        if outcome.result is not None:
            outcome.result.save(self.path / RESULT)
        self.run.write_table(f"{self.folder}/table", outcome.table)
        self.run.write_table(f"{self.folder}/metrics", outcome.metrics)
        for name, table in outcome.more.items():
            self.run.write_table(f"{self.folder}/{name}", table)
        note = {"name": self.name, "do": do, "key": self.key, "summary": outcome.summary}
        write_sealed(self.path / MARK, {**note, "more": list(outcome.more), "files": self._digests(outcome)})

    def _digests(self, outcome: Outcome) -> dict[str, str]:
        """Sha256 of what this step has just written; a recording holds the hashes of its own files."""
        names = [f"{name}.parquet" for name in ("table", "metrics", *outcome.more)]
        names += [RESULT] if outcome.result is not None else []
        return {name: hash_file(self.path / name).sha256 for name in names}

    @property
    def table(self) -> pd.DataFrame:
        return self.run.read_table(f"{self.folder}/table")

    @property
    def more(self) -> dict[str, pd.DataFrame]:
        """Its further tables."""
        names = self.run.read_json(f"{self.folder}/step").get("more", [])
        return {name: self.run.read_table(f"{self.folder}/{name}") for name in names}

    @property
    def metrics(self) -> pd.DataFrame:
        return self.run.read_table(f"{self.folder}/metrics")

    @property
    def summary(self) -> str:
        return str(self.run.read_json(f"{self.folder}/step")["summary"])

    def result(self) -> Any:
        """The recording, or the result; None where the step leaves neither."""
        if (self.path / ACTIVATIONS).is_dir():
            from workbench.recording.recording import Recording

            return Recording.load(self.path / ACTIVATIONS)
        if (self.path / RESULT).is_file():
            from workbench.results import Result

            return Result.load(self.path / RESULT)
        return None


def _has_chance(step: Any) -> bool:
    """Whether a seed decides anything; where not, all seeds share the step."""
    return "seed" in step.registration.arguments if isinstance(step, MethodStep) else not isinstance(step, steps.Record)


def metric_rows(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of the long table; what is not given is missing."""
    table = pd.DataFrame(rows).reindex(columns=list(METRIC_COLUMNS))
    table[["of", "metric"]] = table[["of", "metric"]].astype(object)
    return table.astype(dict.fromkeys(_NUMBERS, "float64"))


def step_key(
    experiment: Experiment, name: str, models: Mapping[str, str], earlier: Mapping[str, str], materials: Materials
) -> str:
    """Hash of everything a step's numbers depend on: models (by role), prompts, settings, recipes with the book's
    files that they are written with, and the steps it reads, whose keys are among ``earlier``."""
    step, pair = experiment.steps[name], experiment.pair_of(name)
    recipes = {recipe: experiment.recipes[recipe] for recipe in references.recipes_of(step)}
    book = materials.book_hashes(recipes.values())
    content = {
        "step": step.plain(), "seed": None if not _has_chance(step) else seed_of(experiment, name),
        "models": models,
        "prompts": [materials.prompts(experiment, group, pair).hash for group in references.sets_of(experiment, name)],
        "recipes": {recipe: spec.plain() for recipe, spec in recipes.items()},
        "reads": {need: earlier[need] for need in references.needs(experiment, name)},
        "on": pair.plain() if models else None,
        **({"book": book} if book else {}),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seed_of(experiment: Experiment, step: str) -> int:
    """The step's own seed, else the experiment's."""
    own = experiment.steps[step].seed
    return experiment.seed if own is None else own
