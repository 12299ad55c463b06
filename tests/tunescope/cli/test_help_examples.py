"""Every command's ``--help`` has an example, and every example works as it is written, with the result it promises.

The folders are small organisms and hand-built models (``example_folders``). Changed for the test is only what would
leave it: the browser is not opened but told what it was to open, and the dashboard's server is not started but its
command line kept. The long ones run as they are, behind ``--runslow``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from dashboards.launch import APP
from dashboards.state import Opened
from interventions import Recipe
from interventions.exchange.control_vectors import from_gguf
from probes.results import ProbeResult
from tests.tunescope.cli.example_folders import (
    a_view_of,
    of_copier,
    of_induction,
    of_organism,
    of_refusals,
    of_training_rows,
    of_virtual_tokens,
    with_recipes,
)
from tests.tunescope.cli.example_tasks import of_tasks
from tunescope.cli.app import app
from tunescope.cli.localize import command_named
from workbench import organisms, runs
from workbench.method_index import index

CLI = CliRunner()
FOLDERS: dict[str, Callable[[Path], None]] = {
    "context-knob": with_recipes,
    "refusal-moe": of_organism("refusal-moe"),
    "refusals": of_refusals,
    "tasks": of_tasks,
    "planted-heads": of_organism("planted-heads"),
    "two-skills": of_organism("two-skills"),
    "induction": of_induction,
    "copier": of_copier,
    "training-rows": of_training_rows,
    "soft-prompt": of_virtual_tokens("prompt"),
    "prefix": of_virtual_tokens("prefix"),
}
TASKS = (
    "attribute-directions",
    "attribute-intersection",
    "calibration-counter-test",
    "certainty",
    "concept-neurons",
    "constraints",
    "context-use",
    "cross-task",
    "early-signs",
    "edges",
    "erased-or-displaced",
    "format-spread",
    "gate",
    "in-context-activations",
    "inherent-limits",
    "instruction-attribution",
    "intensity-dial",
    "many-shot",
    "phrasings",
    "position-effect",
    "probe-suite",
    "procrustes-drift",
    "representation-gap",
    "scaling-law",
    "separability",
    "skill-profile",
    "soft-prompt-split",
    "source-trust",
    "spurious-attributes",
    "subject-offset",
    "template-effect",
    "tool-errors",
    "visited",
    "writing-style",
)
"""The probes that read questions of several tasks with many columns, or long prompts."""
FOLDER_OF = {
    **{f"localize {name}": "tasks" for name in TASKS},
    "localize domain-experts": "refusal-moe",
    "localize expert-sets": "refusal-moe",
    "localize ways-to-turn": "refusals",
    "localize heads": "planted-heads",
    "localize skills": "two-skills",
    "localize experts": "refusal-moe",
    "localize retrieval": "copier",
    "localize paths": "induction",
    "localize circuit": "induction",
    "localize cmap": "induction",
    "localize components": "induction",
    "localize switching": "refusal-moe",
    "localize direction": "refusals",
    "localize head-probe": "refusal-moe",
    "localize less": "training-rows",
    "localize mona": "training-rows",
    "localize delift": "training-rows",
    "localize retrain-without": "training-rows",
    "localize virtual-tokens": "soft-prompt",
    "localize prefix-gates": "prefix",
    "localize tuning-trial": "two-skills",
    "localize edit-sites": "two-skills",
    "localize scale-sweep": "two-skills",
    "localize block-flips": "two-skills",
    "localize update-parts": "two-skills",
}
"""Where a command's example runs; ``context-knob`` for the others."""
SLOW = ("demo", "bench localization", "localize knob", "localize head-selection")
READ_A_RUN = ("runs list", "runs show", "runs verify", "report", "dashboard")
"""Their examples come after that of ``record``, whose run they name."""


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


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that can be run, by the words that call it."""
    command = command or typer.main.get_command(app)
    if path == ("localize",):
        for probe in command.list_commands(None):
            yield f"localize {probe}", command_named(probe)
        return
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), command


def examples(command: Any) -> list[str]:
    return [line.strip() for line in re.findall(r"(?m)(?:^|Example(?:, offline)?:)\s*(tunescope .+)$", command.help)]


EXAMPLES = [(name, line) for name, command in commands() for line in examples(command)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The prepared folder of a name, filled once."""
    filled: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in filled:
            place = tmp_path_factory.mktemp(name)
            FOLDERS[name](place)
            filled[name] = place
        return filled[name]

    return folder


@pytest.fixture
def do(made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Done]:
    """Runs an example of a command in a folder of its own."""
    monkeypatch.delenv("TUNESCOPE_RUNS", raising=False)

    def run(command: str, line: str) -> Done:
        folder = a_view_of(made(FOLDER_OF.get(command, "context-knob")), tmp_path / "here")
        monkeypatch.chdir(folder)
        if command in READ_A_RUN:
            (before,) = [line for name, line in EXAMPLES if name == "record"]
            assert CLI.invoke(app, shlex.split(before)[1:]).exit_code == 0
        browser: list[str] = []
        server: list[tuple[list[str], dict[str, str]]] = []
        monkeypatch.setattr(typer, "launch", browser.append)
        ended = SimpleNamespace(wait=lambda timeout=None: 0, poll=lambda: 0)
        started = SimpleNamespace(Popen=lambda words, env: server.append((words, env)) or ended, TimeoutExpired=OSError)
        monkeypatch.setattr("dashboards.launch.subprocess", started)
        monkeypatch.setattr("uvicorn.run", lambda app, host, port, **_: server.append(([host, str(port)], {})))
        return Done(line, folder, CLI.invoke(app, shlex.split(line)[1:]), browser, server)

    return run


def test_every_command_has_examples_that_call_it_and_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for name, command in commands():
        lines = examples(command)
        assert lines, f"`tunescope {name} --help` has no example"
        shown = CLI.invoke(app, [*name.split(), "--help"]).stdout
        for line in lines:
            assert line.startswith(f"tunescope {name} ") or line == f"tunescope {name}", line
            assert line in re.sub(r"\s+", " ", shown), f"{line} is not shown as it is written"


@pytest.mark.parametrize(
    ("command", "line"),
    [pytest.param(*one, marks=pytest.mark.slow if one[0] in SLOW else (), id=one[1]) for one in EXAMPLES],
)
def test_an_example_works_as_it_is_written(command: str, line: str, do: Callable[[str, str], Done]) -> None:
    assert command in PROMISES, f"say what the example of `tunescope {command}` promises"
    done = do(command, line)
    assert done.result.exit_code == 0, f"{done.result.exception!r}\n{done.result.output}"
    PROMISES[command](done)


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
    assert given["--prompt"] in done.said and all(f" {one} " in done.said for one in strengths)


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
    (run,) = [one for one in made if one.manifest.kind == "demo"]  # the real model's is a look
    assert len(run.read_table("tables/behaviour")) > 5
    page = Path(unquote(urlparse(address).path))
    assert page.name == f"{run.name}-report.html" and "Found against planted" in page.read_text("utf-8")


def _scored(done: Done) -> None:
    assert done.run().config["organisms"] == ["two-skills"] and "graft" in done.said


def _organisms(done: Done) -> None:
    assert all(name in done.said for name in organisms.names())


def _built(done: Done) -> None:
    assert organisms.location("context-knob", 0).is_dir() and "context-knob in" in done.said


def _looked(done: Done) -> None:
    run = done.run()
    assert "What changed?" in done.said and "Where?" in done.said and "sections.json" in run.manifest.files


def _questions(done: Done) -> None:
    assert "heads" in done.said and "Which attention heads carry the change?" in done.said


def _described(done: Done) -> None:
    assert json.loads(done.result.stdout)["truth"]["site"] == organisms.build("context-knob").truth.site


LOCALIZE = [entry.name for entry in index().entries if entry.kind == "probe"]
PROMISES: dict[str, Callable[[Done], None]] = {
    **{f"localize {verb}": _localized for verb in LOCALIZE},
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
    "bench localization": _scored,
    "organism list": _organisms,
    "organism build": _built,
    "organism show": _described,
}
"""What each command's example leaves behind or says."""
