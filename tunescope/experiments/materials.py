"""What the cells of an experiment share: loaded models, prompts, and the files that the YAML names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tunescope.experiments import inline, key_kinds
from tunescope.experiments.inputs import PairSpec, PromptSet
from tunescope.experiments.step_base import Step
from tunescope.experiments.tensor_source import TensorRef
from workbench import organisms
from workbench.errors import UserError, unknown_name
from workbench.placement import Placement
from workbench.progress import Progress, Silent
from workbench.prompts import Prompt, Prompts

if TYPE_CHECKING:
    from interventions.recipe_book import RecipeBook
    from tunescope.experiments.schema import Experiment
    from workbench.models.pair import ModelPair


class Materials:
    """Loads each thing once. One pair is held at a time, the last one asked for.

    ``folder`` is where the YAML file is: paths in it are relative to that. ``say`` hears what differs between the two
    models of a pair beside the weights.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
        where: Placement | None = None,
    ) -> None:
        self.folder = folder
        self._where = where or Placement()
        self._engine = ExitStack()
        self.progress = progress or Silent()
        self._say = say
        self.whole: set[Path] = set()
        """Folders of steps whose files were hashed, or written, since these materials were made."""
        self._pair: tuple[PairSpec, ModelPair] | None = None
        self._said: list[PairSpec] = []
        self._organisms: dict[tuple[str, int], organisms.Organism] = {}
        self._prompts: dict[str, Prompts] = {}
        self._results: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        """A path of the YAML file."""
        if "\0" in name or any(len(part.encode(errors="replace")) > 255 for part in Path(name).parts):
            raise UserError(f"{name[:40]!r}… can be no file's name: check the path.")
        return self.folder / Path(name).expanduser()

    def pair(self, spec: PairSpec) -> ModelPair:
        """The loaded pair. Raises :class:`UserError` for what cannot be loaded or compared."""
        from workbench.models.pair import load_pair

        if self._pair is None or self._pair[0] != spec:
            self.let_go()  # of the last one before the next is loaded
            base, tuned = self._sides(spec)
            pair = load_pair(
                base, tuned, device=spec.device, dtype=spec.dtype, template=spec.template,
                own_generation_config=spec.own_generation_config,
            )  # fmt: skip
            if self._where.executor == "vllm":  # one engine as long as the pair is held
                self._engine.enter_context(self._where.on(pair))
            self._pair = (spec, pair)
            if self._say is not None and spec not in self._said:
                self._said.append(spec)
                for sentence in pair.differences.sentences():
                    self._say(sentence)
        return self._pair[1]

    def single(self, spec: PairSpec, side: str) -> Any:
        """One side alone, loaded anew, for what may change it."""
        from workbench.models.pair import load_one

        return load_one(self._sides(spec)[side == "tuned"], device=spec.device, dtype=spec.dtype)

    def let_go(self) -> None:
        """Of the loaded pair, and of its engine."""
        self._engine.close()
        self._pair = None

    def prompts(self, experiment: Experiment, name: str | None, pair: PairSpec | None = None) -> Prompts:
        """A set of prompts by name; None is the first. Splits are those of ``pair``, else of the experiment's."""
        known = next(iter(experiment.prompts)) if name is None else name
        spec, models = experiment.prompts[known], pair or experiment.pair
        key = self._key(spec, models)
        if key not in self._prompts:
            try:
                self._prompts[key] = chosen_rows(
                    self._rows(spec, models).turned(chat=spec.chat, system=spec.system), spec
                )
            except UserError as error:
                raise UserError(f"prompts.{known}: {error}") from error
        return self._prompts[key]

    def hold_prompts(self, experiment: Experiment, name: str, rows: Prompts) -> None:
        """Take ``rows`` as the set of that name: a sample of it, or rows that were read already."""
        self._prompts[self._key(experiment.prompts[name], experiment.pair)] = rows

    def check_prompts(self, experiment: Experiment) -> None:
        """Refuse sets of prompts as a run would, but for splits of organisms, which may have to be trained first."""
        for name, spec in experiment.prompts.items():
            if spec.split is None:
                self.prompts(experiment, name)

    @staticmethod
    def _key(spec: PromptSet, pair: PairSpec) -> str:
        return f"{spec.model_dump_json()} {pair.model_dump_json() if spec.split is not None else ''}"

    def book(self) -> RecipeBook:
        """The book of recipes that lines are written with: ``$TUNESCOPE_BOOK``, else ``recipes`` beside the file."""
        from interventions.recipe_book import FOLDER, VARIABLE, RecipeBook

        return RecipeBook(os.environ.get(VARIABLE) or self.path(FOLDER))

    def book_hashes(self, recipes: Iterable[inline.RecipeSpec]) -> dict[str, str]:
        """Name -> hash of its file in the book, for all names in the lines of ``recipes``."""
        from interventions.one_line import names_in

        book = self.book()
        names = dict.fromkeys(name for recipe in recipes for line in _lines(recipe) for name in names_in(line))
        return {name: file_hash(file) for name in names if (file := book.file(name)) is not None}

    def result(self, file: str) -> Any:
        """The result that a run keeps in ``file``."""
        from workbench.results import Result

        if file not in self._results:
            self._results[file] = Result.load(self.path(file))
        return self._results[file]

    def _sides(self, spec: PairSpec) -> tuple[Any, Any]:
        if spec.organism is None:
            return self._model(str(spec.base)), self._model(str(spec.tuned))
        organism = self._organism(spec)
        if spec.variant is None:
            return organism.base, organism.tuned
        if spec.variant not in organism.variants:
            raise unknown_name(f"variant of {spec.organism}", spec.variant, organism.variants)
        return organism.base, organism.variants[spec.variant]

    def _model(self, name: str) -> Any:
        """A folder beside the YAML file, or what was written: a hub id or another path."""
        path = self.path(name)
        return path.resolve() if path.exists() else name

    def _organism(self, spec: PairSpec) -> organisms.Organism:
        key = (str(spec.organism), spec.seed)
        if key not in self._organisms:
            self._organisms[key] = organisms.build(*key, progress=self.progress)
        return self._organisms[key]

    def _rows(self, spec: PromptSet, pair: PairSpec) -> Prompts:
        if spec.file is not None:
            return Prompts.load(self.path(spec.file))
        if spec.rows is not None:
            return Prompts.of(spec.rows)
        splits, wanted = self._organism(pair).splits, spec.split
        names = [wanted] if isinstance(wanted, str) else list(wanted or ())
        for name in names:
            if name not in splits:
                raise unknown_name("split", name, splits)
        return Prompts.of([row for name in names for row in splits[name]])


def chosen_rows(rows: Prompts, spec: PromptSet) -> Prompts:
    """The rows that match ``where``, from ``skip`` on, at most ``limit``, with another column as the answer."""
    columns = {name for row in rows for name in row.as_dict()}
    for column in (*spec.where, *([] if spec.answer is None else [spec.answer])):
        if column not in columns:
            raise unknown_name("column", column, columns)
    matching = rows.filter(lambda row: _matches(row, spec.where))[spec.skip :]
    matching = matching if spec.limit is None else matching[: spec.limit]
    if not len(matching):
        raise UserError(f"none of {len(rows)} rows is left by where, skip and limit; loosen them.")
    return matching if spec.answer is None else _answered(matching, spec.answer)


def _answered(rows: Prompts, column: str) -> Prompts:
    """The same rows with ``column`` as the answer and without the old answer's distractor."""
    plain = [{name: value for name, value in row.as_dict().items() if name != "distractor"} for row in rows]
    for number, row in enumerate(plain):
        if not isinstance(row.get(column), str):
            raise UserError(f"row {number} has no text in column {column!r} to be its answer; choose rows with where.")
    return Prompts.of([{**row, "answer": row[column]} for row in plain])


def _matches(row: Prompt, where: Mapping[str, Any]) -> bool:
    values = row.as_dict()
    return all(values.get(name) in (wanted if isinstance(wanted, list) else [wanted]) for name, wanted in where.items())


def _lines(recipe: inline.RecipeSpec) -> list[str]:
    """The lines of the book's names in a recipe."""
    saved = [entry for entry in recipe.interventions or () if isinstance(entry, inline.SavedSpec)]
    entries: list[inline.RecipeSpec | inline.SavedSpec] = [recipe, *saved]
    return [entry.line for entry in entries if entry.line is not None]


def files_named(experiments: Iterable[Experiment]) -> list[str]:
    """The files and folders, other than models and prompts, that an experiment reads; each once, as written."""
    return list(dict.fromkeys(name for experiment in experiments for name in _files(experiment)))


def file_hash(path: Path) -> str:
    """Sha256 of a file's bytes, or of the files of a dictionary's folder (``cfg.json`` and its weights) by name."""
    if not path.exists():
        raise UserError(f"There is no file {path}, which the experiment names: check the path.")
    if not path.is_file() and not (path / "cfg.json").is_file():
        raise UserError(f"{path} is no file: give the file itself, or a dictionary's folder, which has a cfg.json.")
    files = [path] if path.is_file() else sorted(entry for entry in path.iterdir() if entry.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            held = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''} {held}\n".encode())
    return digest.hexdigest()


_NAMING_FILES = inline.RecipeSpec | inline.SavedSpec | TensorRef | inline.FoundRef


def _files(value: Any) -> Iterator[str]:
    if isinstance(value, _NAMING_FILES) and value.file is not None:
        yield value.file
    if isinstance(value, Step):
        yield from (name for _, name in key_kinds.named(value, "file"))
    if isinstance(value, BaseModel) and not isinstance(value, PromptSet):
        for name in type(value).model_fields:
            yield from _files(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _files(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _files(item)
