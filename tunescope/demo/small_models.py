"""The demo on the small models: organisms, chapters, and the run that keeps what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tunescope.demo.chapter import Chapter, Section, Settings
from tunescope.experiments.from_run import RECORD
from workbench import organisms, runs
from workbench.figures.demo import demo_figure
from workbench.models.quiet import without_bars
from workbench.organisms import Organism
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.runs import Run

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demo printed comes from here, and is in the run."""

    run: Run
    behaviour: pd.DataFrame
    truth: pd.DataFrame
    seconds: float
    cpu_seconds: float


def run_demo(settings: Settings, home: Path | None, progress: Progress, say: Say) -> DemoResult:
    """Build or load both organisms, measure, and write the run (kind ``demo``) below ``home``."""
    from tunescope.demo.context import context_chapter
    from tunescope.demo.experts import experts_chapter

    started, spent = time.perf_counter(), time.process_time()
    with _small_models():
        chapters = []
        for name, chapter in (("context-knob", context_chapter), ("refusal-moe", experts_chapter)):
            say(f"{name}: {'loading' if organisms.location(name, settings.seed).is_dir() else 'training (once)'}")
            organism = organisms.build(name, settings.seed, progress=progress)
            say(f"{name}: recording, localizing, steering")
            chapters.append((organism, chapter(organism, settings, progress)))
    behaviour = pd.concat([chapter.behaviour for _, chapter in chapters], ignore_index=True)
    truth = pd.concat([chapter.truth for _, chapter in chapters], ignore_index=True)
    run = _written(settings, home, chapters, behaviour, truth)
    return DemoResult(run, behaviour, truth, time.perf_counter() - started, time.process_time() - spent)


@contextmanager
def _small_models() -> Iterator[None]:
    """One thread and no bars of others: more threads only wait for each other on models this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with without_bars():
            yield
    finally:
        torch.set_num_threads(threads)


def _written(
    settings: Settings,
    home: Path | None,
    chapters: list[tuple[Organism, Chapter]],
    behaviour: pd.DataFrame,
    truth: pd.DataFrame,
) -> Run:
    config = {**asdict(settings), "organisms": {organism.name: chapter.models for organism, chapter in chapters}}
    run = runs.create(home or runs.default_home(), kind="demo", config=config)
    if run.is_complete:
        run.reopen()
    run.note(**_made(chapters))
    first = Section(
        "What tuning did, and how to undo it",
        "Shares of prompts whose most likely next token is the answer that the behaviour asks for, on prompts that "
        "neither the probes nor the recipes were fitted on. Each recipe stands beside random stand-ins of the same "
        "size, and each number beside its 95 % interval, a bootstrap over groups of prompts.",
        {"behaviour": behaviour}, {"behaviour": demo_figure(behaviour)},
    )  # fmt: skip
    second = Section(
        "Found against planted",
        "The organisms were trained so that the change lies in known places. What the probes named, computed without "
        "looking at the truth, is compared with it here. A head or an expert can carry a behaviour without having been "
        "changed itself, so a miss in this table is not always a mistake.",
        {"truth": truth},
    )
    sections = [first, second, *(section for _, chapter in chapters for section in chapter.sections)]
    with run:
        for section in sections:
            _write_section(run, section)
        for _, chapter in chapters:
            for name, (recipe, model) in chapter.recipes.items():
                recipe.save(run.file(f"recipes/{name}.safetensors"), model=model)
            for name, result in chapter.results.items():
                result.save(run.file(_result(chapter, name)))
            run.file("prompts").mkdir(exist_ok=True)
            Prompts.of(chapter.prompts).save(run.file(f"prompts/{chapter.organism}.jsonl"))
        run.write_json("sections", [
            {"title": section.title, "text": section.text, "tables": [_file(name) for name in section.tables],
             "figures": [_file(name) for name in section.figures]}
            for section in sections
        ])  # fmt: skip
    return run


def _made(chapters: list[tuple[Organism, Chapter]]) -> dict[str, Any]:
    """What the run was made from: the organisms, and for each pair of models where it lies, the prompts kept, the
    results that are about it, and the experiment that makes them again."""
    organisms_ = {
        organism.name: {
            "folder": str(organism.folder),
            **{k: v for k, v in organism.made_with.items() if k != "settings"},
        }
        for organism, _ in chapters
    }
    pairs = {
        organism.name: {
            "base": str(organism.base), "tuned": str(organism.tuned), "organism": organism.name, "seed": organism.seed,
            "prompts": f"prompts/{organism.name}.jsonl",
            "results": [_result(chapter, name) for name in chapter.results],
        }
        for organism, chapter in chapters
    }  # fmt: skip
    experiments = {organism.name: chapter.experiment for organism, chapter in chapters}
    return {"organisms": organisms_, "pairs": pairs, RECORD: experiments}


def _result(chapter: Chapter, name: str) -> str:
    return f"results/{chapter.organism}-{name}.safetensors"


def _write_section(run: Run, section: Section) -> None:
    for name, table in section.tables.items():
        run.write_table(f"tables/{_file(name)}", table)
    for name, figure in section.figures.items():
        run.write_text(f"figures/{_file(name)}.json", figure.to_json())


def _file(name: str) -> str:
    return name.replace(" ", "_")
