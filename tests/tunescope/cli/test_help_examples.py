"""Every command's ``--help`` has an example, and every example works as it is written, with the result it promises.

The folders are small organisms and hand-built models (``example_folders``). Changed for the test is only what would
leave it: the browser is not opened but told what it was to open, and the dashboard's server is not started but its
command line kept; and the demo puts a quarter of its questions to the real model. The long ones run behind
``--runslow``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.declared import declared
from tests.tunescope.cli.example_folders import (
    a_view_of,
    of_copier,
    of_induction,
    of_lessons,
    of_organism,
    of_refusals,
    of_training_rows,
    of_virtual_tokens,
    with_recipes,
)
from tests.tunescope.cli.example_kinds import of_dept, of_nola, of_texts, of_variants
from tests.tunescope.cli.example_promises import PROMISES, Done
from tests.tunescope.cli.example_tasks import of_tasks
from tunescope.cli.app import app
from tunescope.cli.localize import command_named
from tunescope.demo.real_model import show_real
from workbench.method_index import index
from workbench.methods import VERBS

CLI = CliRunner()
FOLDERS: dict[str, Callable[[Path], None]] = {
    "context-knob": with_recipes,
    "refusal-moe": of_organism("refusal-moe"),
    "confounded": of_organism("confounded"),
    "refusals": of_refusals,
    "tasks": of_tasks,
    "planted-heads": of_organism("planted-heads"),
    "two-skills": of_organism("two-skills"),
    "induction": of_induction,
    "copier": of_copier,
    "training-rows": of_training_rows,
    "lessons": of_lessons,
    "soft-prompt": of_virtual_tokens("prompt"),
    "prefix": of_virtual_tokens("prefix"),
    "nola": of_nola,
    "dept": of_dept,
    "variants": of_variants,
    "texts": of_texts,
}
TASKS = (
    "ability-collisions",
    "attribute-directions",
    "attribute-intersection",
    "calibration-counter-test",
    "certainty",
    "concept-neurons",
    "constraints",
    "context-preference",
    "context-use",
    "cross-task",
    "early-signs",
    "edges",
    "elicitation",
    "erased-or-displaced",
    "format-spread",
    "gate",
    "generalization",
    "in-context-activations",
    "inherent-limits",
    "instruction-attribution",
    "intensity-dial",
    "language-transfer",
    "many-shot",
    "merge-synergy",
    "phrasings",
    "planted-switch",
    "position-effect",
    "probe-suite",
    "procrustes-drift",
    "question-dependency",
    "representation-gap",
    "routing",
    "sample-efficiency",
    "scaling-law",
    "separability",
    "skill-profile",
    "soft-prompt-split",
    "source-trust",
    "spurious-attributes",
    "subject-offset",
    "target-attention",
    "template-effect",
    "tool-errors",
    "two-axes",
    "visited",
    "writing-style",
)
"""The probes that read questions of several tasks with many columns, or long prompts."""
STATES = (
    "attribute-suite",
    "concept-drift",
    "curved-path",
    "direction-transfer",
    "input-side",
    "layer-views",
    "pattern-types",
    "pollution",
    "set-algebra",
    "token-guidance",
    "token-relevance",
)
"""These read them too."""
FOLDER_OF = {
    **{entry.command: "lessons" for entry in index().entries if entry.kind == "training"},
    **{f"localize {name}": "tasks" for name in (*TASKS, *STATES)},
    "measure self-critique": "confounded",
    "localize random-bases": "nola",
    "localize decomposed-prompt": "dept",
    "localize fault-tokens": "variants",
    "localize undoing": "texts",
    "localize lora-blocks": "training-rows",
    "localize domain-experts": "refusal-moe",
    "localize expert-sets": "refusal-moe",
    "localize ways-to-turn": "refusals",
    "localize heads": "planted-heads",
    "localize skills": "two-skills",
    "localize experts": "refusal-moe",
    "localize retrieval": "copier",
    "localize same-heads": "copier",
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
"""Where a command's example runs; ``context-knob`` for the others but those that say it in their own test file."""
SLOW = (
    "demo",
    "bench audit",
    "bench localization",
    "bench tracr",
    "bench mib",
    "bench ravel",
    "bench outside",
    "localize knob",
    "localize head-selection",
    "localize calibration-counter-test",
    "localize ways-to-turn",
    "localize routing",
    "localize elicitation",
    "localize sample-efficiency",
)
BY_HAND = ("bench mib", "bench ravel")
"""Minutes each on a real chat model; their parts are tested in tests/tunescope/bench."""
READ_A_RUN = ("runs list", "runs show", "runs verify", "report", "dashboard")
"""Their examples come after that of ``record``, whose run they name."""
READ_THE_BOOK = ("recipe book", "recipe drop")
"""Theirs come after that of ``recipe keep``."""


def folder_of(command: str) -> str:
    """The folder that a command's example runs in."""
    return FOLDER_OF.get(command) or declared("EXAMPLE_FOLDER").get(command.split()[-1], "context-knob")


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that can be run, by the words that call it."""
    command = command or typer.main.get_command(app)
    if path in [(verb,) for verb in VERBS.values()]:
        for name in command.list_commands(None):
            yield f"{path[0]} {name}", command_named(name)
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
    for name in ("TUNESCOPE_RUNS", "TUNESCOPE_BOOK"):
        monkeypatch.delenv(name, raising=False)

    def run(command: str, line: str) -> Done:
        folder = a_view_of(made(folder_of(command)), tmp_path / "here")
        monkeypatch.chdir(folder)
        first = "record" if command in READ_A_RUN else "recipe keep" if command in READ_THE_BOOK else None
        for before in [line for name, line in EXAMPLES if name == first]:
            assert CLI.invoke(app, shlex.split(before)[1:]).exit_code == 0
        browser: list[str] = []
        server: list[tuple[list[str], dict[str, str]]] = []
        monkeypatch.setattr(typer, "launch", browser.append)
        ended = SimpleNamespace(wait=lambda timeout=None: 0, poll=lambda: 0)
        started = SimpleNamespace(Popen=lambda words, env: server.append((words, env)) or ended, TimeoutExpired=OSError)
        monkeypatch.setattr("dashboards.launch.subprocess", started)
        monkeypatch.setattr("tunescope.demo.real_model.show_real", partial(show_real, questions=8))
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
    [
        pytest.param(*example, marks=pytest.mark.slow if example[0] in SLOW else (), id=example[1])
        for example in EXAMPLES
    ],
)
def test_an_example_works_as_it_is_written(command: str, line: str, do: Callable[[str, str], Done]) -> None:
    if command in BY_HAND:
        pytest.skip("minutes on a real model: run by hand")
    assert command in PROMISES, f"say what the example of `tunescope {command}` promises"
    done = do(command, line)
    assert done.result.exit_code == 0, f"{done.result.exception!r}\n{done.result.output}"
    PROMISES[command](done)
