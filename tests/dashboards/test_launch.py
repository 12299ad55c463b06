"""The server as a newcomer starts it: on a machine that never ran Streamlit, with nobody to answer questions."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from dashboards.launch import command


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_dashboard_that_is_ended_leaves_no_server(tmp_path: Path) -> None:
    port = free_port()
    started = subprocess.Popen(
        [sys.executable, "-m", "tunescope", "dashboard", "--headless", "--port", str(port)],
        env={**os.environ, "TUNESCOPE_RUNS": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(240):
            if answers(port):
                break
            assert started.poll() is None, "the dashboard ended"
            time.sleep(0.5)
        assert answers(port)
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=60)
        assert not answers(port)
    finally:
        started.kill()
        started.wait()


def test_the_first_start_on_a_machine_asks_nothing(tmp_path: Path) -> None:
    """Without headless Streamlit asks for an e-mail address in the terminal and serves nothing until it is answered."""
    port = free_port()
    environment = {**os.environ, "HOME": str(tmp_path), "TUNESCOPE_RUNS": str(tmp_path), "BROWSER": "true"}
    server = subprocess.Popen(
        command(port), env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.5)
        pytest.fail("the server did not come up: it waits for an answer")
    finally:
        server.terminate()
        server.communicate()
