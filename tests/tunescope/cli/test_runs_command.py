"""``tunescope runs``: a table for people, JSON alone for programs, and exit codes that can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from tunescope.cli.output import emit, plain, progress_bar
from tunescope.cli.runs import app
from workbench import runs
from workbench.errors import UserError
from workbench.progress import LineProgress

CLI = CliRunner()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with runs.create(tmp_path, "first", kind="record", config={"sites": ["z"]}, provenance={"seed": 3}) as run:
        run.write_text("notes.md", "hello")
    runs.create(tmp_path, "second", kind="steer", config={"text": "[bold]\x1b[31mred"})
    return tmp_path


def test_list_in_both_forms(home: Path) -> None:
    outcome = CLI.invoke(app, ["list", "--home", str(home), "--json"])
    listed = json.loads(outcome.stdout)
    assert outcome.exit_code == 0 and outcome.stderr == ""
    assert {(run["name"], run["state"]) for run in listed["runs"]} == {("first", "complete"), ("second", "running")}
    shown = CLI.invoke(app, ["list"], env={"TUNESCOPE_RUNS": str(home)})
    assert "2 runs in" in shown.stdout and "first" in shown.stdout and "running" in shown.stdout
    empty = CLI.invoke(app, ["list"], env={"TUNESCOPE_RUNS": str(home / "none")})
    assert empty.exit_code == 0 and "0 runs" in empty.output
    for verb in ("list", "verify"):
        absent = CLI.invoke(app, [verb, "--home", str(home / "none")])
        assert isinstance(absent.exception, UserError) and "There is no folder" in str(absent.exception)


def test_show_by_path_and_by_name(home: Path) -> None:
    for arguments in ([str(home / "first")], ["first", "--home", str(home)]):
        manifest = json.loads(CLI.invoke(app, ["show", *arguments, "--json"]).stdout)
        assert manifest["config"] == {"sites": ["z"]} and manifest["files"]["notes.md"]["size"] == 5
    shown = CLI.invoke(app, ["show", str(home / "second")])
    assert "[bold]\\x1b[31mred" in shown.stdout and "\x1b" not in shown.stdout
    for arguments, message in (
        (["absent"], "There is no such folder"),
        (["../first"], "no name inside"),
        (["/absent"], "no such folder: /absent"),
    ):
        failed = CLI.invoke(app, ["show", *arguments, "--home", str(home)])
        assert isinstance(failed.exception, UserError) and message in str(failed.exception)


def test_verify_exits_1_when_anything_is_wrong(home: Path) -> None:
    fine = CLI.invoke(app, ["verify", str(home / "first"), "--json"])
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)["runs"][0]["checked"] == 1
    assert "1 file, unchanged" in CLI.invoke(app, ["verify", "first", "--home", str(home)]).stdout
    (home / "first" / "notes.md").write_text("hellO")
    (home / "first" / "[red]x\x1b").write_text("")
    wrong = CLI.invoke(app, ["verify", "--home", str(home), "--json"])
    assert wrong.exit_code == 1
    found = {Path(run["run"]).name: run for run in json.loads(wrong.stdout)["runs"]}
    assert found["first"]["changed"] == ["notes.md"] and found["first"]["foreign"] == ["[red]x\x1b"]
    assert found["second"]["state"] == "running" and not found["second"]["ok"]
    table = CLI.invoke(app, ["verify", "first", "--home", str(home)])
    assert table.exit_code == 1 and "[red]x\\x1b" in table.stdout and "\x1b" not in table.stdout


@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_help_shows_an_example(command: str) -> None:
    assert "Example, offline" in CLI.invoke(app, [command, "--help"]).stdout


def test_plain_writes_out_what_a_terminal_would_obey() -> None:
    assert plain("a\x1b[2Jb\r\nc\x9b\u202ed\ud800\u2028") == "a\\x1b[2Jb\\r\\nc\\x9b\\u202ed\\ud800\\u2028"
    assert plain("Grüße 日本 👩\u200d🔬 [bold]") == "Grüße 日本 👩\u200d🔬 [bold]"


def test_emit_prints_frames_and_payloads(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"token": ["[red]", ":smile:"], "score": [0.123456, float("nan")], "ok": [True, False]})
    emit({"any": 1}, False, frame, title="A [bold] title")
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("A [bold] title", "[red]", ":smile:", "0.1235", "yes", "no"))
    emit({"x": [1, 2], "y": {"z": None}}, False)
    assert '{"z": null}' in capsys.readouterr().out
    emit({"frame": frame}, True)
    assert json.loads(capsys.readouterr().out)["frame"][1] == {"token": ":smile:", "score": None, "ok": False}
    emit({}, False, [], title="nothing here")
    assert capsys.readouterr().out == "nothing here\n"


def test_progress_of_a_short_task_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        assert isinstance(bar, LineProgress)
        bar.start("a task", 2)
        bar.advance()
        bar.finish()
    assert capsys.readouterr() == ("", "")
