"""What ``tunescope diff`` measures, in order, and the run that keeps it."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tunescope.cli.diff_files import Files, read_files
from tunescope.cli.finished_chapters import FinishedChapters, result_file
from tunescope.cli.output import say_differences
from workbench import runs
from workbench.behaviour import (
    BehaviourDiff,
    behaviour_diff,
    dose_response,
    is_refusal,
    known_unknown,
    scope_panel,
    sure_unsure,
)
from workbench.behaviour.by_certainty import PartedDiff
from workbench.behaviour.dose import DoseResponse
from workbench.behaviour.dosing import DOSED
from workbench.behaviour.scope import ScopePanel
from workbench.behaviour.scorers import meaning_of
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.placement import Placement
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.results import Provenance, Result
from workbench.tables import with_intervals

if TYPE_CHECKING:
    from interventions import Recipe

CHANGES = (
    "change is the difference from the tuned model, from_base that from the base; both are paired by prompt, so their "
    "intervals are those of the difference. An interval that holds 0 shows no change."
)
CALIBRATION = (
    "Prompts in bins of confidence (the probability of the most likely next token), and the share of each bin whose "
    "most likely next token begins the answer. A calibrated model lies on the diagonal."
)
TEXTS = (
    "Sample 0 is greedy; the others are sampled with the same random numbers for every model, so that models which "
    "agree write the same text."
)


@dataclass(frozen=True, kw_only=True)
class DiffRequest:
    """The options of the command."""

    base: str
    tuned: str
    prompts: Path
    recipes: tuple[Path, ...]
    on: str
    metrics: str | None
    behaviours: tuple[str, ...]
    neutral: Path | None
    samples: int
    max_new_tokens: int
    strengths: tuple[float, ...] | None
    follow: str | None
    near: Path | None
    outside: Path | None
    changed: str
    split: str | None
    draws: int
    batch_size: int
    limit: int | None
    seed: int
    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool
    chat: bool | None = None
    system: str | None = None
    template: str = "tuned"
    own_generation_config: bool = False

    def config(self) -> dict[str, Any]:
        """As the run's manifest keeps it."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {"verb": "diff", **plain, "recipes": [str(recipe) for recipe in self.recipes],
                "behaviours": list(self.behaviours)}  # fmt: skip


@dataclass(frozen=True)
class Chapter:
    """One part of the run: a result, how it is called, and what a reader should know."""

    name: str
    title: str
    text: str
    result: Result | None
    """None where it is part of an earlier chapter's."""
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Any]
    further_tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables that the run keeps and no report shows."""


@dataclass(frozen=True)
class Compared:
    """Everything that was measured."""

    request: DiffRequest
    rows: Prompts
    behaviour: BehaviourDiff
    chapters: list[Chapter] = field(default_factory=list)

    def title(self) -> str:
        return self.behaviour.summary()

    @property
    def results(self) -> dict[str, Result]:
        """Every result by the name of its chapter."""
        return {chapter.name: chapter.result for chapter in self.chapters if chapter.result is not None}

    def printed(self) -> list[tuple[str, pd.DataFrame]]:
        """Title and table of each part as people read it."""
        tables = []
        for chapter in self.chapters:
            for name, table in chapter.tables.items():
                tables.append((chapter.title if len(chapter.tables) == 1 else f"{chapter.title}: {name}", table))
        return [(title, with_intervals(table)) for title, table in tables]

    def payload(self) -> dict[str, Any]:
        """Every result as its own JSON, by chapter."""
        own = json.loads(self.behaviour.to_json())
        return {
            **own,
            **{name: json.loads(result.to_json()) for name, result in self.results.items() if name != "behaviour"},
        }

    def write(self, run: runs.Run) -> None:
        """Fill the run: tables, figures, prompts, and the sections of a report; results are there already."""
        run.note(**dataclasses.asdict(self.behaviour.provenance))
        results = [result_file(name) for name in self.results]
        run.keep_pair(self.request.base, self.request.tuned, self.rows, results=results)
        for chapter in self.chapters:
            for name, table in {**chapter.tables, **chapter.further_tables}.items():
                run.write_table(f"tables/{name}", table)
            for name, figure in chapter.figures.items():
                run.write_text(f"figures/{name}.json", figure.to_json())
        run.write_json("sections", [
            {
                "title": chapter.title, "text": chapter.text, "tables": list(chapter.tables),
                "figures": list(chapter.figures),
            }
            for chapter in self.chapters
        ])  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What the command has read: models, prompts and recipes, each with its random stand-ins."""

    request: DiffRequest
    pair: ModelPair
    rows: Prompts
    neutral: Prompts | None
    near: Prompts | None
    outside: Prompts | None
    recipes: dict[str, Recipe]
    random: dict[str, list[Recipe]]
    metrics: list[str]
    progress: Progress

    def basis(self) -> dict[str, Any]:
        """What every result of this run is made from, by content."""
        others = [self.neutral, self.near, self.outside]
        origin = Provenance.of("diff", self.pair.models, self.rows)
        return {
            "models": origin.models, "versions": dict(origin.versions), "prompts": origin.prompts,
            "other_prompts": [None if prompts is None else prompts.hash for prompts in others],
            "recipes": {name: recipe.content for name, recipe in self.recipes.items()},
        }  # fmt: skip

    @property
    def on(self) -> str:
        """The side the recipes are applied to."""
        return self.request.on

    @property
    def shared(self) -> dict[str, Any]:
        """Options that every call takes."""
        request = self.request
        return {"seed": request.seed, "progress": self.progress, "max_new_tokens": request.max_new_tokens}


def compare(
    request: DiffRequest, out: Path | None, progress: Progress, where: Placement | None = None
) -> tuple[runs.Run, Compared]:
    """Measure all that was asked for, in a run that is listed from its first moment.

    Files are read before the run is made, and models loaded in it. After an interruption the same command goes on
    behind the last chapter that was finished. ``where``: where it runs; by default in this process.
    """
    files, placement = read_files(request), where or Placement()
    config = {**request.config(), **placement.settings()}
    with placement.ready(), runs.begun("diff", config, out) as run, ExitStack() as stack:
        bench = _bench(request, files, progress)
        stack.enter_context(placement.on(bench.pair))
        finished = FinishedChapters(run, bench.basis())
        run.file("results").mkdir(exist_ok=True)
        behaviour = finished.result("behaviour", BehaviourDiff, partial(_measured, bench))
        chapters = _behaviour(behaviour, bench)
        if request.strengths is not None:
            chapters += [_dose(bench, finished, number, name) for number, name in enumerate(bench.recipes, 1)]
        if bench.outside is not None and bench.recipes:
            chapters.append(_scope(bench, finished))
        if request.split is not None:
            chapters.append(_split(bench, finished))
        compared = Compared(request, bench.rows, behaviour, chapters)
        compared.write(run)
    return run, compared


def _measured(bench: Bench) -> BehaviourDiff:
    side: dict[str, Any] = {"recipe": bench.recipes} if bench.on == "tuned" else {"base_recipes": bench.recipes}
    return behaviour_diff(
        bench.pair, bench.rows, metrics=bench.metrics,
        controls={f"random, as {name}": draws for name, draws in bench.random.items() if draws},
        controls_on=bench.on, neutral=bench.neutral, samples=bench.request.samples, texts=True,
        batch_size=bench.request.batch_size, **side, **bench.shared,
    )  # fmt: skip


def _bench(request: DiffRequest, files: Files, progress: Progress) -> Bench:
    pair = load_pair(
        request.base, request.tuned, device=request.device, dtype=request.dtype,
        allow_pickle=request.allow_pickle, trust_remote_code=request.trust_remote_code, template=request.template,
        own_generation_config=request.own_generation_config,
    )  # fmt: skip
    say_differences(pair.differences.sentences())
    model = pair.models[request.on]
    recipes = {name: recipe.with_models_of(pair.models.values()) for name, recipe in files.recipes.items()}
    for recipe in recipes.values():
        recipe.check(model)
    random = {name: _random(recipe, model, files.rows, request) for name, recipe in recipes.items()}
    return Bench(
        request, pair, files.rows, files.neutral, files.near, files.outside, recipes, random, files.metrics,
        progress,
    )  # fmt: skip


def _random(recipe: Recipe, model: AdaptedModel, rows: Prompts, request: DiffRequest) -> list[Recipe]:
    from probes.random_recipes import stand_ins

    return stand_ins(recipe, model, rows, request.draws, request.seed) if request.draws else []


def _behaviour(behaviour: BehaviourDiff, bench: Bench) -> list[Chapter]:
    lacking = [name for name, draws in bench.random.items() if not draws]
    text = (
        "Each number is a mean over prompts (perplexity and calibration error: one number for all) beside its 95 % "
        "interval, a bootstrap over prompts, or over groups where prompts have them (where all prompts agree on a "
        "share, the exact binomial interval)."
    )
    if any(bench.random.values()):
        draws = max(len(stand_ins) for stand_ins in bench.random.values())
        text += f" A line 'random, as …' is the mean over {draws} random recipes matched to the recipe."
    if lacking:
        text += f" There is no random counterpart, and so no control, for {', '.join(lacking)}."
    meanings = "\n".join(f"{name}: {meaning_of(name)}." for name in dict.fromkeys(behaviour.table["metric"]))
    figures = behaviour.figures()
    chapters = [
        Chapter("behaviour", "Behaviour", f"{text}\n\n{meanings}", behaviour, {"metrics": behaviour.by_metric()},
                {"behaviour": figures["behaviour"]}, {"behaviour": behaviour.table, "rows": behaviour.rows}),
        Chapter("changes", "Changes, paired by prompt", CHANGES, None, {"changes": behaviour.changes()}, {}),
    ]  # fmt: skip
    if len(behaviour.calibration):
        chapters.append(
            Chapter("calibration", "Calibration", CALIBRATION, None, {"calibration": behaviour.calibration},
                    {"calibration": figures["calibration"]})
        )  # fmt: skip
    if len(behaviour.texts):
        tables, shown = {"texts": behaviour.texts}, {"texts": figures["texts"]}
        chapters.append(Chapter("texts", "Texts side by side", TEXTS, None, {}, shown, tables))
    return chapters


def _dose(bench: Bench, finished: FinishedChapters, number: int, name: str) -> Chapter:
    from interventions.sweep import dose

    metric = bench.request.follow or next((metric for metric in bench.metrics if metric in DOSED), "kl")
    key = f"dose-{number}"
    response = finished.result(key, DoseResponse, lambda: dose_response(
        bench.pair, bench.rows, dose(bench.recipes[name]), bench.request.strengths or (), metric=metric,
        controls=[dose(recipe) for recipe in bench.random[name]], on=bench.on, batch_size=bench.request.batch_size,
        neutral=bench.neutral, out_of_scope=bench.outside, **bench.shared,
    ))  # fmt: skip
    text = f"{response.summary()}. At strength 1 the recipe is as it was saved; 0 leaves the model as it is."
    if response.side:
        text += f" The second panel shows a side effect at the same strengths: {response.side}."
    return Chapter(key, f"Dose and response: {name}", text, response, {key: response.table}, {key: response.figure()})


def _scope(bench: Bench, finished: FinishedChapters) -> Chapter:
    changed: Any = is_refusal if bench.request.changed == "refusal" else bench.request.changed
    panel = finished.result("scope", ScopePanel, lambda: scope_panel(
        bench.pair, bench.recipes, bench.rows, bench.near, bench.outside,
        changed=changed, controls=bench.random, on=bench.on, **bench.shared,
    ))  # fmt: skip
    text = f"{panel.summary()}.\n\nselective: the share changed in scope minus that beyond, with its interval."
    tables = {"scope": panel.table, "selective": panel.selective}
    return Chapter("scope", "Where the recipe acts", text, panel, tables, {"scope": panel.figure()})


def _split(bench: Bench, finished: FinishedChapters) -> Chapter:
    metrics = [] if bench.request.metrics is None else [metric for metric in bench.metrics if metric != "perplexity"]
    known = bench.request.split == "known"
    first = ["refusal", "contained"] if known else ["accuracy", "confidence", "brier", "ece"]
    name, title = ("known", "Known and unknown questions") if known else ("sure", "Sure and unsure answers")
    parted = finished.result(name, PartedDiff, lambda: (known_unknown if known else sure_unsure)(
        bench.pair, bench.rows, bench.recipes if bench.on == "tuned" else None,
        metrics=list(dict.fromkeys([*first, *metrics])), batch_size=bench.request.batch_size, **bench.shared,
    ))  # fmt: skip
    left_out = " Recipes on the base are left out here." if bench.on == "base" and bench.recipes else ""
    text = f"Divided by {parted.summary()}.{left_out}"
    kept_whole = {f"{name}-long": parted.table}
    return Chapter(name, title, text, parted, {name: parted.by_metric()}, {name: parted.figure()}, kept_whole)
