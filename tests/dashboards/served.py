"""A server of the app as ``tunescope dashboard`` starts it, for tests with a browser or a connection."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dashboards.launch import command
from dashboards.state import BASE, TUNED, WARM


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def is_up(port: int) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    """Return when the server answers; it has two minutes."""
    for _ in range(240):
        if is_up(port):
            return
        assert server.poll() is None, "the server ended"
        time.sleep(0.5)
    raise AssertionError("the server did not come up")


@contextmanager
def served(home: Path, base: str = "", tuned: str = "", log: Path | None = None) -> Iterator[tuple[str, int]]:
    """A running server over the runs in ``home``, opened on a pair where there is one: its address and process id.

    What it writes to its terminal goes to ``log``.
    """
    port = free_port()
    opened = {BASE: base, TUNED: tuned} if base else {}
    environment = {**os.environ, "TUNESCOPE_RUNS": str(home), WARM: "1", **opened}
    terminal = subprocess.DEVNULL if log is None else log.open("wb")
    try:
        server = subprocess.Popen(command(port, headless=True), env=environment, stdout=terminal, stderr=terminal)
        try:
            wait_until_up(server, port)
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.terminate()
            server.wait(timeout=20)
    finally:
        if not isinstance(terminal, int):
            terminal.close()
