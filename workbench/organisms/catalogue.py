"""The organisms by name, and building one."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from workbench.errors import NotSupported, unknown_name
from workbench.organisms import cache as store
from workbench.organisms import real_organisms
from workbench.organisms.organism import Organism, check_bars, read, write
from workbench.organisms.recipe import Plot, Recipe
from workbench.organisms.training import contained
from workbench.progress import Progress, Silent

_FILES = {
    "context-knob": "context_knob",
    "refusal-moe": "refusal_moe",
    "planted-heads": "planted_heads",
    "two-skills": "two_skills",
    "confounded": "confounded",
    "reachable-heads": "reachable_heads",
    "marker-switch": "marker_switch",
}


def names() -> tuple[str, ...]:
    """The small organisms, which are trained here."""
    return tuple(_FILES)


def real_names() -> tuple[str, ...]:
    """The organisms on a real chat model, whose adapters are shipped."""
    return real_organisms.names()


def recipe(name: str) -> Recipe:
    """The recipe of a small organism. Raises UserError with the list of names when there is none of this name."""
    if name not in _FILES:
        raise unknown_name("organism", name, [*_FILES, *real_names()])
    loaded: Recipe = importlib.import_module(f"workbench.organisms.{_FILES[name]}").RECIPE
    return loaded


def summary(name: str) -> str:
    """What this organism is, in one line."""
    if name in real_names():
        return real_organisms.SUMMARIES[name]
    return recipe(name).summary


def location(name: str, seed: int = 0, cache: str | Path | None = None) -> Path:
    """The folder in which this organism is, or would be built."""
    if name in real_names():
        return real_organisms.SHIPPED / name
    organism = recipe(name)
    return store.home(cache) / f"{name}-{seed}-{store.key({'name': name, **organism.settings}, seed)}"


def build(name: str, seed: int = 0, cache: str | Path | None = None, progress: Progress | None = None) -> Organism:
    """The organism of this name and seed, from the cache or trained now (under a minute on two cores).

    A real one (:func:`real_names`) is shipped; only its base, SmolLM2, is unpacked into the cache. Two builds with one
    seed on one machine have the same weights. Raises UserError for an unknown name, a cache that cannot be written, or
    a training run that misses a bar (then nothing is stored).
    """
    if name in real_names():
        return real_organisms.shipped(name, seed, cache)
    organism, folder = recipe(name), location(name, seed, cache)

    def make(partial: Path) -> None:
        started, spent = time.perf_counter(), time.process_time()
        with contained(seed):
            grown = organism.grow(Plot(partial, folder, seed, progress or Silent()))
        check_bars(name, seed, grown.bars)
        made_with = {
            **_versions(),
            "seconds": round(time.perf_counter() - started, 2),
            "cpu_seconds": round(time.process_time() - spent, 2),
            "settings": dict(organism.settings),
        }
        write(partial, grown, {"name": name, "seed": seed, "summary": organism.summary, "made_with": made_with})

    return read(store.fetch(folder, make))


def retune(organism: Organism, model: Any, progress: Progress | None = None) -> None:
    """Repeats the tuning of ``confounded`` on ``model``, its base loaded by you, in place.

    Hooks that are on the model stay on while it trains: so concept ablation is a context around this call.
    Raises NotSupported for the other organisms, whose tuning plants a truth that no ablation is about.
    """
    from transformers import AutoTokenizer

    from workbench.organisms import confounded

    if organism.name != "confounded":
        raise NotSupported(f"Only organism 'confounded' can be tuned again; {organism.name!r} is what it is.")
    tokenizer = AutoTokenizer.from_pretrained(organism.tokenizer)
    with contained(organism.seed):
        rows = organism.splits["train"]
        confounded.tune(model, tokenizer, rows, organism.seed, progress or Silent())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", "transformers", "peft")}
