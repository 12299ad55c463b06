"""The commands we print are ones that this person's shell can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunescope.cli.output import command_name


def test_a_program_that_is_not_on_the_path_is_named_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / ".venv" / "bin" / "tunescope"
    own.parent.mkdir(parents=True)
    own.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(own)])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert command_name() == ".venv/bin/tunescope"
    monkeypatch.setenv("PATH", str(own.parent))
    assert command_name() == "tunescope"
