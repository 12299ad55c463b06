"""``tunescope env``: what a bug report needs, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunescope.cli import env
from tunescope.cli.app import app


def test_it_says_versions_devices_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "here"))
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    done = CliRunner().invoke(app, ["env", "--json"])
    said = json.loads(done.stdout)
    assert done.exit_code == 0
    for name in ("torch", "transformers", "peft"):
        assert said[name] == metadata.version(name)
    assert said["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert said["runs"] == f"{tmp_path / 'here'} (not there yet)" and str(tmp_path) in said["organisms"]
    assert said["Hugging Face cache"].startswith(str(tmp_path / "hf" / "hub"))
    assert said["processors"] == os.cpu_count() and isinstance(said["gpus"], list)


def test_the_table_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "LIBRARIES", ("torch", "no-such-library"))
    done = CliRunner().invoke(app, ["env"])
    assert done.exit_code == 0 and metadata.version("torch") in done.stdout and "no-such-library" in done.stdout


def test_gpus_are_read_from_the_driver_and_a_failure_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(env.sys, "platform", "linux")
    assert env.gpus() == []
    program.write_text("#!/bin/sh\necho 'Some GPU, 1000 MiB, 570.1'\necho 'Some GPU, 1000 MiB, 570.1'\n")
    program.chmod(0o755)
    assert env.gpus() == ["Some GPU, 1000 MiB, 570.1"] * 2
    program.write_text("#!/bin/sh\nexit 9\n")
    assert env.gpus() == ["nvidia-smi failed (CalledProcessError)"]


def test_it_imports_no_torch() -> None:
    code = "from tunescope.cli.env import environment; environment(); import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
