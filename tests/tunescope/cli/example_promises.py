"""What the example of each command promises: the files, tables and sentences that it leaves behind or says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pandas as pd
import pytest
import torch
from typer.testing import Result

from dashboards.launch import APP
from dashboards.state import Opened
from interventions import Recipe
from interventions.exchange.control_vectors import from_gguf
from interventions.recipe_book import RecipeBook
from interventions.training.log import TrainingLog
from probes.results import ProbeResult
from workbench import load_model, load_pair, organisms, runs
from workbench.glossary import COLUMNS
from workbench.method_index import index
from workbench.organisms import real
from workbench.results import Result as Kept


@dataclass(frozen=True)
class Done:
    """One example that ran."""

    line: str
    folder: Path
    result: Result
    browser: list[str]
    """Addresses that were to be opened."""
    server: list[tuple[list[str], dict[str, str]]]
    """Command lines that were to be started, each with its environment."""

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", self.result.stdout)

    def run(self, name: str | None = None) -> runs.Run:
        """The run that was written: complete, as its manifest says, and the only one."""
        (path,) = [place for place in (self.folder / "runs").iterdir() if place.is_dir()]
        assert name is None or path.name == name
        assert runs.verify(path).ok and path.name in self.said.replace(" ", "")
        return runs.open(path)


def _audited(done: Done) -> None:
    assert "1. " in done.said and "Weights" in done.said


def _contract_holds(done: Done) -> None:
    assert "Contract: holds." in done.said
    assert (done.folder / "contract.svg").read_text().startswith("<svg")


def _localized(done: Done) -> None:
    run = done.run()
    table = run.read_table("table")
    found: Any = ProbeResult.load(run.file("result.safetensors"))
    assert len(table) == len(found.frame()) > 0 and f"localize {run.manifest.kind}" in done.line
    assert found.control.strip(), "what it is held against, in words"
    assert not re.search(r"\bnan\b", found.summary()), "a number that there is not has no place in a sentence"
    assert json.loads(run.file("figures/figure.json").read_text())["data"]


def _copied(done: Done) -> None:
    _localized(done)
    found: Any = ProbeResult.load(done.run().file("result.safetensors"))
    assert found.heads() == ["L1H0"] and found.kept == {"tuned": (10, 10), "base": (10, 10)}


def _recorded(done: Done) -> None:
    run = done.run("first")
    assert run.manifest.kind == "record" and run.file("activations").is_dir()


def _compared(done: Done) -> None:
    run = done.run("first-diff" if "--out" in done.line else None)
    assert run.manifest.kind == "diff" and re.search(rf"tunescope report \S*runs/{run.name} --open", done.said)


def _steered(done: Done) -> None:
    words = shlex.split(done.line)
    given = dict(pairwise(words))
    strengths = given.get("--strengths", "1").split(",")
    assert given["--prompt"] in done.said and all(f" {strength} " in done.said for strength in strengths)


def _environment(done: Done) -> None:
    assert "torch build" in done.said and "Hugging Face cache" in done.said and not (done.folder / "runs").exists()


def _planned(done: Done) -> None:
    assert "localize experts" in done.said and "4 cells" in done.said and not (done.folder / "runs").exists()


def _shown_recipe(done: Done) -> None:
    assert "SubspaceKnob" in done.said and "1 intervention" in done.said and "1 interventions" not in done.said


def _checked(done: Done) -> None:
    assert "fits yes" in done.said


def _exported(done: Done) -> None:
    (read,), (written,) = Recipe.load("offset.safetensors"), from_gguf(done.folder / "offset.gguf")
    assert written.layer == read.layer and torch.equal(written.vector, read.vector.float())


def _listed(done: Done) -> None:
    assert "1 run in runs" in done.said and "first" in done.said


def _shown_run(done: Done) -> None:
    assert "prompts.jsonl" in done.said and "complete" in done.said


def _verified(done: Done) -> None:
    assert "files, unchanged" in done.said


def _reported(done: Done) -> None:
    """The page exists, names the run and is what the browser was to open."""
    (address,) = done.browser
    page = Path(unquote(urlparse(address).path))
    assert page == (done.folder / "runs" / "first-report.html").resolve() and "resid_post" in page.read_text("utf-8")


def _served(done: Done) -> None:
    """The server that would be started shows what was named, to this computer only."""
    ((words, environment),) = done.server
    assert words[1:5] == ["-m", "streamlit", "run", str(APP)] and APP.is_file()
    options = dict(zip(words[5::2], words[6::2], strict=True))
    assert options["--server.address"] == "127.0.0.1" and options["--server.port"] == "8501"
    run = Opened(run=done.folder / "runs" / "first").as_environment()
    given = run if "runs/first" in done.line else {"TUNESCOPE_OPEN_BASE": "./base", "TUNESCOPE_OPEN_TUNED": "./tuned"}
    assert {name: value for name, value in environment.items() if name.startswith("TUNESCOPE_OPEN")} == given


def _answering(done: Done) -> None:
    """The server would listen on this computer only, with a token that is said, and says what it offers."""
    assert done.server == [(["127.0.0.1", "8000"], {})]
    assert "tuned+offset" in done.result.stderr and "token" in done.result.stderr


def _certified(done: Done) -> None:
    assert "Holds: over" in done.said


def _told(done: Done) -> None:
    (address,) = done.browser
    made = [runs.open(place) for place in (done.folder / "runs").iterdir() if place.is_dir()]
    (run,) = [each for each in made if each.manifest.kind == "demo"]
    assert len(run.read_table("tables/behaviour")) > 5
    page = Path(unquote(urlparse(address).path))
    assert page.name == f"{run.name}-report.html" and "Found against planted" in page.read_text("utf-8")
    if real.installed():
        _told_of_the_real_model(done.result.output, next(each for each in made if each.manifest.kind == "look"))


def _told_of_the_real_model(said: str, run: runs.Run) -> None:
    """What changed and where, with half of the questions about animals."""
    assert "refusals 0% -> " in said and "heads: of the change" in said
    assert runs.verify(run.path).ok and {"answers", "layers", "heads"} <= {
        path.stem for path in run.file("results").iterdir()
    }
    answers = ProbeResult.load(run.file("results/answers.safetensors")).frame()
    assert set(answers["label"]) == {"animal", "thing"} and len(answers) == 8
    top = ProbeResult.load(run.file("results/layers.safetensors")).frame().set_index("layer")["score"]
    assert top[29] == pytest.approx(1.0, abs=1e-3) and top[0] < 0.1, "carried late, not early"


def _scored(done: Done) -> None:
    assert done.run().config["organisms"] == ["two-skills"] and "graft" in done.said


def _organisms(done: Done) -> None:
    assert all(name in done.said for name in organisms.names())


def _built(done: Done) -> None:
    assert organisms.location("context-knob", 0).is_dir() and "context-knob in" in done.said


def _looked(done: Done) -> None:
    run = done.run()
    assert "What changed?" in done.said and "Where?" in done.said and "sections.json" in run.manifest.files


def _explained(done: Done) -> None:
    assert " ".join(COLUMNS["control"].split()[:4]) in done.said


def _lines_of(done: Done) -> pd.DataFrame:
    run = done.run()
    assert run.config["verb"] in done.line
    return run.read_table("tables/lines")


def _compiled(done: Done) -> None:
    """What was planted in the programs is found by patching, as it must."""
    lines = _lines_of(done)
    assert set(lines["program"]) == {"hist", "previous"}
    assert lines.loc[lines["method"] == "patching, same inputs", "precision"].eq(1.0).all()


def _audit_benched(done: Done) -> None:
    """The right description of every planted pair is chosen, and no null pair is accused."""
    lines = _lines_of(done)
    assert lines.loc[lines["view"] == "together", "hit"].all() and set(lines["kind"]) == {"small", "null"}


def _ordered(done: Done) -> None:
    """The published order: both ways of attribution are better than edges at random."""
    lines = _lines_of(done).set_index("method")
    assert lines.loc[["EAP", "EAP-IG"], "cpr"].min() > lines.loc["random", "cpr"]


def _counted(done: Done) -> None:
    """What the three suites would cost, in passes."""
    assert all(title in done.said for title in ("Tracr programs: passes", "MIB, circuit track: passes", "RAVEL: pas"))


def _exchanged(done: Done) -> None:
    """What a subspace that was trained for the attribute holds of it is more than what a random one does."""
    lines = _lines_of(done).set_index("method")
    assert lines.loc["DAS", "cause"] > lines.loc["random", "cause"]


def _held(done: Done) -> None:
    assert "1 recipe" in done.said and "formal" in done.said and "Offset" in done.said


def _kept(done: Done) -> None:
    (held,), (read,) = RecipeBook()["formal"], Recipe.load("offset.safetensors")
    assert "formal" in done.said and torch.equal(held.vector, read.vector)


def _dropped(done: Done) -> None:
    assert "formal" in done.said and not list(RecipeBook())


def _questions(done: Done) -> None:
    assert "heads" in done.said and "Which attention heads carry the change?" in done.said


def _described(done: Done) -> None:
    assert json.loads(done.result.stdout)["truth"]["site"] == organisms.build("context-knob").truth.site


def _trained(done: Done) -> None:
    """A log of steps, and what was trained as files that can be read."""
    run = done.run()
    log = TrainingLog.load(run.file("result.safetensors"))
    assert log.provenance.models["base"]["hash"] and log.summary() in done.said
    made = run.file("trained")
    member = made / "near" if (made / "near").is_dir() else made
    if (made / "recipe.safetensors").is_file():
        assert len(Recipe.load(made / "recipe.safetensors")) == 1
    elif not (made / "learned.safetensors").is_file():
        with load_pair(done.folder / "base", member).tuned.active() as model:
            assert sum(parameter.numel() for parameter in model.parameters()) > 0
        base = load_model(done.folder / "base").identity.hash
        assert load_pair(done.folder / "base", member).tuned.identity.hash != base


def _measured(done: Done) -> None:
    run = done.run()
    result = Kept.load(run.file("result.safetensors"))
    assert len(result.table) and json.loads(run.file("figures/figure.json").read_text())["data"]
    assert result.provenance.n_prompts == 48


LOCALIZE = [entry.name for entry in index().entries if entry.kind == "probe"]
PROMISES: dict[str, Callable[[Done], None]] = {
    **{f"localize {verb}": _localized for verb in LOCALIZE},
    **{entry.command: _trained for entry in index().entries if entry.kind == "training"},
    **{entry.command: _measured for entry in index().entries if entry.kind == "behaviour"},
    "localize retrieval": _copied,
    "audit": _audited,
    "check": _contract_holds,
    "record": _recorded,
    "diff": _compared,
    "steer": _steered,
    "run": _planned,
    "look": _looked,
    "methods": _questions,
    "recipe show": _shown_recipe,
    "recipe check": _checked,
    "recipe export": _exported,
    "recipe certify": _certified,
    "serve": _answering,
    "runs list": _listed,
    "runs show": _shown_run,
    "runs verify": _verified,
    "env": _environment,
    "report": _reported,
    "dashboard": _served,
    "demo": _told,
    "bench audit": _audit_benched,
    "bench localization": _scored,
    "terms": _explained,
    "bench tracr": _compiled,
    "bench mib": _ordered,
    "bench ravel": _exchanged,
    "bench outside": _counted,
    "recipe book": _held,
    "recipe keep": _kept,
    "recipe drop": _dropped,
    "organism list": _organisms,
    "organism build": _built,
    "organism show": _described,
}
"""What each command's example leaves behind or says."""
