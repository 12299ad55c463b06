"""``tunescope organism``: list, show and their errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunescope.cli.organism import app
from workbench import organisms
from workbench.errors import UserError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_says_what_is_built(tmp_path: Path) -> None:
    found = json.loads(run("list", "--json", "--cache", str(tmp_path)))["organisms"]
    assert [one["name"] for one in found] == [*organisms.names(), *organisms.real_names()]
    built = [one["name"] for one in found if one["built"]]
    assert built == list(organisms.real_names()) and str(tmp_path) in found[0]["folder"]  # the real ones are shipped
    assert "context-knob" in run("list", "--cache", str(tmp_path))


def test_show_of_what_is_not_built_says_how(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tunescope organism build confounded"):
        CliRunner().invoke(app, ["show", "confounded", "--cache", str(tmp_path)], catch_exceptions=False)


def test_build_and_show_give_the_same_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path))  # where it is trained first
    built = json.loads(run("build", "confounded", "--json"))
    assert built == json.loads(run("show", "confounded", "--json"))
    assert built["truth"]["site"] == "blocks.2.hook_resid_post"
    assert Path(built["base"], "config.json").exists()


def test_an_unknown_organism_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"Known: .*two-skills"):
        CliRunner().invoke(app, ["build", "nothing"], catch_exceptions=False)
