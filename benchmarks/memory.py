"""Resident memory on Linux, and measuring it in a fresh process, where nothing else has run before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def reset_peak() -> float:
    """Forget the peak so far; returns the resident memory now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The most resident memory since the reset, mapped files included, in MB."""
    return _status("VmHWM")


def resident(*, files: bool = True) -> float:
    """Resident memory now, in MB; without ``files`` only what no file backs."""
    return _status("VmRSS" if files else "RssAnon")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def in_fresh_process(module: str, function: str, **arguments: Any) -> Any:
    """``module.function(**arguments)`` in a new Python; its JSON-able return value."""
    code = (
        "import importlib, json, sys; name, function, given = sys.argv[1:]\n"
        "found = getattr(importlib.import_module(name), function)(**json.loads(given))\n"
        "print(json.dumps(found))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code, module, function, json.dumps(arguments)],
        check=True, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])
