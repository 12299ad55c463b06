"""Provenance: from it alone (with the models and prompts it names by hash) every probe's call can be made again.

Each probe is called with every option at another value than its default; the provenance must hold all of them, under
the names of the call. A probe's own test file says the calls (`tests.probes.provenance`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probes
from probes.knob.find import Setup
from probes.knob.subspace import Training
from probes.needles.trials import contents
from probes.results import ProbeResult, Provenance
from tests.probes.provenance import Calls, calls_of, homes, pair, probes_with_results, rows, takes_progress
from tests.probes.provenance_calls import shouts
from workbench.call_settings import APART, LONG, call_settings, plain, prompts_hash
from workbench.prompts import Prompts

MODELS = ("base", "tuned", "pair", "subject")
DATA = ("recording", "prompts", "trials")
"""Arguments that are named by hash, in fields of the provenance of their own."""
UNTESTED = {"IntensityDial": {"q"}}
"""Result -> columns that it need not have: a dial is calibrated, and none of its lines is a test."""


@dataclass
class Bar:
    """A progress that notes every task that counted more or fewer units than it had said."""

    running: list[list[Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def start(self, what: str, total: int | None) -> None:
        self.running.append([what, total, 0])

    def advance(self, by: int = 1) -> None:
        self.running[-1][2] += by

    def finish(self) -> None:
        what, total, done = self.running.pop()
        if total is not None and done != total and sys.exc_info()[0] is None:  # not one that was given up
            self.wrong.append(f"{what}: {done} of {total}")


def left_out(probe: Callable[..., Any], calls: Calls) -> list[str]:
    """What the provenance of the results does not hold, what no call gives another value than its default, and bars
    that end elsewhere than they said."""
    arguments, missing, tried = calls.arguments(probe), [], set()
    bar = Bar()
    heard: dict[str, Any] = {"progress": bar} if takes_progress(probe, calls) else {}
    for given in calls.given:
        result = probe(**given, **heard)
        made = result.provenance
        json.dumps(dataclasses.asdict(made))
        missing += lacking(result)
        missing += [f"{name} of {sorted(given)}" for name, value in given.items() if not held(made, name, value)]
        tried |= {name for name, value in given.items() if plain(value) != plain(arguments[name])}
    return [*missing, *bar.wrong, *(f"{name}: never tried" for name in arguments if name not in tried)]


def lacking(result: Any) -> list[str]:
    """What a person needs beside every number and this result does not have."""
    if not isinstance(result, ProbeResult):
        return []
    columns = sorted(
        {"score", "low", "high", "control", "q"} - set(result.table) - UNTESTED.get(type(result).__name__, set())
    )
    return [*(f"the table has no {name}" for name in columns), *([] if result.control.strip() else ["no control"])]


def held(made: Provenance, name: str, value: Any) -> bool:
    if name in MODELS:
        models = [getattr(value, role) for role in ("base", "tuned") if hasattr(value, role)] or [value]
        known = [model["hash"] for model in made.models.values()]
        return any(model.identity.hash in known for model in models)
    if name == "model" and name not in made.settings:
        return value.identity.hash in [model["hash"] for model in made.models.values()]
    if name == "recording":
        where = {key: value.config[key] for key in ("sites", "positions")}
        return made.prompts == value.config["prompts"] and where.items() <= made.settings["recording"].items()
    if name == "trials":
        return made.prompts == prompts_hash(contents(value))
    if name == "prompts":  # where only some of them could be used, those are the result's prompts
        return value.hash in (made.prompts, made.settings.get("prompts"))
    if name == "seed":
        return made.seed == value
    return name in made.settings and made.settings[name] == plain(value)


def test_every_probe_has_its_calls() -> None:
    without = sorted(set(probes_with_results()) - set(homes()))
    assert not without, f"say calls_of_{without[0]}() in its test file (tests/probes/provenance.py)"


@pytest.mark.parametrize("name", probes_with_results())
def test_every_argument_is_in_the_provenance_and_bars_end_where_they_said(name: str) -> None:
    assert left_out(getattr(probes, name), calls_of(name)) == []


@dataclass(frozen=True)
class Options:
    kept: int = 1
    forgotten: int = 2
    progress: Any = None


def test_a_probe_that_forgets_an_option_is_told_so() -> None:
    def toy(prompts: Prompts, seed: int = 0, **options: Any) -> Any:
        chosen = Options(**options)
        return SimpleNamespace(provenance=Provenance.of("toy", {}, prompts, seed=0, settings={"kept": chosen.kept}))

    given = {"prompts": rows(2), "seed": 3, "kept": 5, "forgotten": 7}
    told = " ".join(left_out(toy, Calls([given], Options)))
    assert "seed of" in told and "forgotten of" in told and "kept of" not in told
    assert "kept: never tried" in left_out(toy, Calls([{**given, "kept": 1}], Options))
    with pytest.raises(AssertionError, match="are read into"):
        left_out(toy, Calls([given]))


def test_a_result_without_its_test_or_control_is_told_so() -> None:
    lens = probes.logit_lens(pair(), rows(), top=2)
    assert lacking(lens) == []
    bare = dataclasses.replace(lens, table=lens.table.drop(columns=["q", "low"]), control=" ")
    assert lacking(bare) == ["the table has no low", "the table has no q", "no control"]


def test_values_become_plain() -> None:
    assert call_settings(Options(), more=(1, 2.5, None)) == {"kept": 1, "forgotten": 2, "more": [1, 2.5, None]}
    assert set(APART) == {"seed", "progress"}
    assert plain(slice(1, None)) == "slice(1, None, None)" and plain(np.arange(2)) == [0, 1]
    assert plain({1: np.float64(0.5)}) == {"1": 0.5} and plain(shouts) == f"function {shouts.__module__}.shouts"
    assert plain(rows(2)) == rows(2).hash and plain(rows(2)) != plain(rows(3))
    assert plain(Training(steps=7))["steps"] == 7 and plain(Setup())["thresholds"]["reached"] == 0.85
    long = [str(number) for number in range(LONG + 1)]
    assert plain(long[1:]) == long[1:] and plain(long) == prompts_hash(long)
    tables = [pd.DataFrame({"score": [1.0, value]}) for value in (2.0, 3.0)]
    assert plain(tables[0]) == plain(tables[0].copy()) != plain(tables[1])
    lens = probes.logit_lens(pair(), rows(), top=2)
    said: Mapping[str, Any] = plain(lens)
    assert said["probe"] == "logit_lens" and said["settings"]["top"] == 2 and said["prompts"] == rows().hash
