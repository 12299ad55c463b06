"""The app in a real browser: every page opens, a link is followed, one steer runs. Screenshots are build output."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd
import plotly.graph_objects as go
import pytest

import interventions as iv
from dashboards.launch import command
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import runs

CHROMIUM = os.environ.get("TUNESCOPE_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is missing: apt-get install chromium")
HOSTILE = '<img src=x onerror="window.obeyed=1"><script>window.obeyed=1</script>'
SHOTS = os.environ.get("TUNESCOPE_SCREENSHOTS")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a saved pair."""
    home = tmp_path_factory.mktemp("browser")
    base = tiny_model("olmoe")
    for name, model in (("base", base), ("tuned", tuned_copy(base, size=0.1))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    for name in ("first", "second"):
        figure = go.Figure(go.Heatmap(z=[[0.1, -0.2], [0.4, 0.0]], zmid=0, colorscale="RdBu"))
        figure.update_layout(title={"text": f"Change by head {HOSTILE}"})
        with runs.create(home / "runs", name, kind="demo", config={"name": name}) as run:
            table = pd.DataFrame({"answer": [HOSTILE, "yes"], "score": [0.5, 0.25]})
            run.write_table("tables/answers", table)
            run.write_text("figures/heads.json", figure.to_json())
            section = {"title": "What changed", "text": HOSTILE, "tables": ["answers"], "figures": ["heads"]}
            run.write_json("sections", [section])
            iv.Recipe([iv.ExpertSwitch(off=["L1E0"])]).save(run.file("switch.safetensors"))
    return home


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "TUNESCOPE_RUNS": str(place / "runs")}
    server = subprocess.Popen(
        command(port, headless=True), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_every_page_opens_and_one_steer_runs(address: str, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    from playwright.sync_api import expect, sync_playwright

    shots = Path(SHOTS) if SHOTS else tmp_path
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)

        page.goto(f"{address}/?run=first")
        expect(page.get_by_role("heading", name="What changed")).to_be_visible(timeout=60_000)
        expect(page.locator(".js-plotly-plot")).to_be_visible(timeout=60_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=shots / "overview.png")
        with page.expect_download() as download:
            page.get_by_role("button", name="CSV", exact=True).click()
        assert "onerror" in Path(download.value.path()).read_text(encoding="utf-8")

        page.goto(f"{address}/runs")
        expect(page.get_by_role("heading", name="Compare two")).to_be_visible(timeout=60_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=shots / "runs.png")

        link = urlencode({"base": place / "base", "tuned": place / "tuned", "how": "Experts off", "off": "L1E3"})
        page.goto(f"{address}/steer?{link}")
        page.get_by_label("Prompts, one per line").fill(f"the quick brown fox\n{HOSTILE}")
        page.get_by_label("Prompts, one per line").press("Control+Enter")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_text("Model restored: 0 hooks, logits identical")).to_be_visible(timeout=120_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=shots / "steer.png", full_page=True)
        assert page.evaluate("window.obeyed") is None
        browser.close()
