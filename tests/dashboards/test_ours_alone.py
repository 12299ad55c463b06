"""The server is ours alone: its settings, its child, what figures may load, and what a CSV may run."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from dashboards.content_policy import PolicyHeaders, of_streamlit, policy
from dashboards.launch import command, warning_of
from dashboards.plain_figures import without_fetching
from tests.dashboards.served import free_port, wait_until_up
from workbench.csv_text import csv_text
from workbench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_the_settings_of_the_folder_are_not_obeyed() -> None:
    words = command(8501)
    given = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
    assert given["--server.enableCORS"] == given["--server.enableXsrfProtection"] == "true"
    assert given["--server.enableAgentApi"] == "false" and given["--client.showErrorDetails"] == "none"
    hosts = [words[i + 1] for i, word in enumerate(words) if word == "--server.allowedHosts"]
    assert hosts == ["127.0.0.1", "localhost"]


def test_who_lets_others_connect_is_told_that_there_is_no_password() -> None:
    assert warning_of("127.0.0.1") is None and warning_of("localhost") is None
    assert "no password" in (warning_of("0.0.0.0") or "")


def test_the_policy_allows_the_scripts_of_the_page_and_no_other() -> None:
    first = policy("<script>window.ready = true</script><script src='x.js'></script>")
    digest = base64.b64encode(hashlib.sha256(b"window.ready = true").digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}' 'wasm-unsafe-eval';" in first
    assert "'unsafe-inline'" not in first.partition("script-src")[2].partition(";")[0]
    assert all(f"{name} 'none'" in first for name in ("object-src", "frame-src", "base-uri", "frame-ancestors"))
    assert "sha256-" in of_streamlit()


def test_every_answer_carries_the_policy_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Content-Security-Policy", b"default-src *"), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(PolicyHeaders(app)({"type": "http"}, None, send))  # type: ignore[arg-type]
    named = [name.lower() for name, _ in sent[0]["headers"]]
    assert named.count(b"content-security-policy") == 1 and b"x-own" in named and b"x-content-type-options" in named


def test_figures_load_nothing() -> None:
    plain = go.Figure(go.Scatter(x=[1], y=[2]))
    plain.add_layout_image(source="https://evil.example/x.png")
    assert not without_fetching(plain, "x").layout.images
    for trace in (go.Scattermap(), go.Scattergeo(), go.Image(source="https://evil.example"), go.Choropleth()):
        with pytest.raises(UserError, match="can load things from elsewhere"):
            without_fetching(go.Figure(trace), "x")


def test_a_csv_holds_no_formula_and_numbers_stay() -> None:
    cells = ["=1+1", "+cmd", "-x", "@a", "\tb", "plain", "-3.5", None]
    table = pd.DataFrame({"=name": cells, "score": [-1.5] * 8})
    lines = csv_text(table).splitlines()
    assert lines[0] == "'=name,score" and lines[1] == "'=1+1,-1.5" and lines[4] == "'@a,-1.5"
    assert lines[6] == "plain,-1.5" and lines[7] == "-3.5,-1.5" and lines[8] == ",-1.5"


def _answer(port: int, host: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        link.sendall(
            f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        return link.recv(64).split(b"\r\n")[0]


@pytest.mark.slow
def test_another_name_is_refused_and_sigterm_leaves_no_server(tmp_path: Path) -> None:
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text(
        "[server]\nenableCORS = false\nenableXsrfProtection = false\nenableAgentApi = true\n"
    )
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tunescope", "dashboard", "--headless", "--port", str(port)], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_up(process, port)
        assert b"101" in _answer(port, f"127.0.0.1:{port}")
        assert b"403" in _answer(port, f"evil.example:{port}")
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        with pytest.raises(OSError, match=r"refused"):
            socket.create_connection(("127.0.0.1", port), timeout=1)
    finally:
        process.kill()
