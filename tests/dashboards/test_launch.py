"""The server as a newcomer starts it: on a machine that never ran Streamlit, with nobody to answer questions."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dashboards.launch import LOCALHOST, command, launch
from dashboards.state import Opened
from tests.dashboards.served import free_port, is_up, wait_until_up
from workbench.errors import UserError


def test_a_dashboard_that_is_ended_leaves_no_server(tmp_path: Path) -> None:
    port = free_port()
    started = subprocess.Popen(
        [sys.executable, "-m", "tunescope", "dashboard", "--headless", "--port", str(port)],
        env={**os.environ, "TUNESCOPE_RUNS": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_up(started, port)
        assert started.stdout is not None
        assert f"http://127.0.0.1:{port}" in started.stdout.readline().decode()
        started.send_signal(signal.SIGTERM)
        said, _ = started.communicate(timeout=60)
        assert not is_up(port) and b"streamlit" not in said.lower()
    finally:
        started.kill()
        started.wait()


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server((LOCALHOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} of 127.0.0.1 cannot be used.* give another --port"):
            launch(Opened(), port)
    with pytest.raises(UserError, match=r"of 192\.0\.2\.1 cannot be used"):
        launch(Opened(), free_port(), "192.0.2.1")


def test_the_first_start_on_a_machine_asks_nothing(tmp_path: Path) -> None:
    """Without headless Streamlit asks for an e-mail address in the terminal and serves nothing until it is answered."""
    port = free_port()
    environment = {**os.environ, "HOME": str(tmp_path), "TUNESCOPE_RUNS": str(tmp_path), "BROWSER": "true"}
    server = subprocess.Popen(
        command(port), env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_up(server, port)
    finally:
        server.terminate()
        server.communicate()
