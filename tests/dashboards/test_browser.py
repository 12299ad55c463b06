"""The app in a real browser: every page opens, links, clicks, sliders, a steer, a recording and exports work.

Screenshots are build output: they go to ``build/screenshots``, or to the folder in ``TUNESCOPE_SCREENSHOTS``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.sample_runs import WORDS, lab_run, save_pair, told_run
from tests.dashboards.served import served

CHROMIUM = os.environ.get("TUNESCOPE_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is missing: apt-get install chromium")
HOSTILE = '<img src=x onerror="window.obeyed=1"><script>window.obeyed=1</script>'
SHOTS = Path(os.environ.get("TUNESCOPE_SCREENSHOTS") or Path(__file__).parents[2] / "build" / "screenshots")
PAGES = {
    "": "What changed", "tokens": "Tokens", "heads": "Heads", "skills": "Skills", "experts": "Experts",
    "knobs": "Knobs and concepts", "steer": "Steer", "record": "Record a pair", "runs": "Runs",
}  # fmt: skip
BUSY = "[data-testid=stSpinner], [data-testid=stSkeleton], [data-testid=stStatusWidget]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, a run about it, and a run that a hostile model wrote."""
    home = tmp_path_factory.mktemp("browser")
    folders = save_pair(home)
    told_run(home / "runs", "hostile", said=HOSTILE)
    lab_run(home / "runs", *folders)
    return home


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A running server."""
    with served(place / "runs") as (running, _):
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as player:
        running = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    shown = browser.new_page(viewport={"width": 1280, "height": 900})
    shown.set_default_timeout(60_000)
    failed = request.session.testsfailed
    yield shown
    if request.session.testsfailed > failed:
        shown.screenshot(path=SHOTS / f"failed-{request.node.name}.png")
    shown.close()


def settled(page: Any) -> None:
    """Wait until the page has been still for a moment."""
    for _ in range(2):
        page.wait_for_timeout(500)
        for _ in range(240):  # page.wait_for_function evaluates text, which the app's policy forbids
            if not page.locator(BUSY).count():
                break
            page.wait_for_timeout(250)


def opened(page: Any, address: str, path: str = "", query: str = "run=lab") -> None:
    page.goto(f"{address}/{path}?{query}")
    page.get_by_role("heading", name=PAGES[path], exact=True).wait_for()
    settled(page)


def whole(page: Any, name: str) -> None:
    """A screenshot of everything on the page, as high as it is."""
    height = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
    page.set_viewport_size({"width": 1280, "height": min(int(height) + 80, 8000)})
    page.wait_for_timeout(800)
    page.screenshot(path=SHOTS / f"{name}.png")
    page.set_viewport_size({"width": 1280, "height": 900})


def click_cell(page: Any, chart: str, column: object, row: object, off: float = 0.0) -> None:
    """Click a cell of a map; ``off`` is how far from its middle, in halves of its width."""
    page.locator(f".st-key-{chart} .js-plotly-plot .heatmaplayer").first.wait_for()
    page.wait_for_timeout(1000)
    place = page.evaluate(
        """([chart, column, row, off]) => {
            const plot = document.querySelector(`.st-key-${chart} .js-plotly-plot`), layout = plot._fullLayout
            plot.scrollIntoView({block: "center"})
            const box = plot.getBoundingClientRect(), x = layout.xaxis, y = layout.yaxis
            const width = Math.abs(x.d2p(x._categories.length ? x._categories[1] : 1)
                - x.d2p(x._categories.length ? x._categories[0] : 0))
            return [box.left + x._offset + x.d2p(column) + off * width / 2, box.top + y._offset + y.d2p(row)]
        }""",
        [chart, column, row, off],
    )
    page.mouse.move(*place)
    page.wait_for_timeout(200)
    page.mouse.click(*place)
    settled(page)


def no_errors(page: Any) -> None:
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.locator("[data-testid=stAlertContentError]").count() == 0, page.locator(
        "[data-testid=stAlertContentError]"
    ).all_inner_texts()
    assert page.evaluate("window.obeyed") is None


@pytest.mark.parametrize("path", PAGES)
def test_every_page_opens(page: Any, address: str, path: str) -> None:
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text) if "Content Security Policy" in said.text else None)
    opened(page, address, path)
    no_errors(page)
    whole(page, path or "overview")
    assert not refused, "the app's own parts keep to its policy"


def test_what_is_not_the_apps_own_is_not_loaded_or_run(page: Any, address: str) -> None:
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text) if "Content Security Policy" in said.text else None)
    opened(page, address)
    page.evaluate("""() => {
        const script = document.createElement("script")
        script.textContent = "window.obeyed = 1"
        document.body.append(script)
        const picture = document.createElement("img")
        picture.src = "http://127.0.0.2:9/tracker.png"
        document.body.append(picture)
        fetch("http://127.0.0.2:9/").catch(() => null)
    }""")
    page.wait_for_timeout(500)
    assert page.evaluate("window.obeyed") is None
    assert all(any(word in text for text in refused) for word in ("script-src", "img-src", "connect-src"))


def test_a_hostile_run_is_shown_as_text(page: Any, address: str) -> None:
    opened(page, address, "", "run=hostile")
    assert page.get_by_text("onerror=").count()
    no_errors(page)


def test_a_link_sets_the_selection_and_pages_keep_it(page: Any, address: str) -> None:
    opened(page, address, "heads", "run=lab&layer=2&head=3&prompt=1")
    assert page.get_by_label("Layer", exact=True).input_value() == "2"
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Steer").click()
    page.get_by_role("heading", name="Steer", exact=True).wait_for()
    settled(page)
    assert "layer=2" in page.url and "head=3" in page.url
    assert page.get_by_label("One per line").input_value().splitlines()[0] == WORDS[1]
    page.goto(f"{address}/?run=lab&layer=77")
    page.get_by_text("There is no layer 77 here").wait_for()


def test_a_recipe_is_two_clicks_away_from_the_overview(page: Any, address: str) -> None:
    """A link inside the app also sets what this tab had otherwise: the run and the recipe."""
    opened(page, address, "steer", "run=lab&recipe=off")
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Overview").click()
    page.get_by_role("link", name="offset").click()
    page.get_by_role("heading", name="Steer", exact=True).wait_for()
    page.get_by_text("In effect: offset (Offset)").wait_for()
    settled(page)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Model restored: 0 hooks, logits identical").wait_for(timeout=120_000)
    no_errors(page)


def test_nothing_is_fetched_from_elsewhere(page: Any, address: str) -> None:
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    opened(page, address)
    opened(page, address, "steer")
    assert not [
        url for url in fetched if not url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
    ]


def test_a_click_on_a_map_moves_the_selection(page: Any, address: str) -> None:
    opened(page, address)
    click_cell(page, "chart-weights", "mlp.gate", 2)
    page.wait_for_url("**layer=2**")
    assert page.get_by_label("Layer", exact=True).input_value() == "2"


def test_exports_hold_what_is_shown(page: Any, browser: Any, address: str, tmp_path: Path) -> None:
    opened(page, address)
    with page.expect_download() as download:
        page.locator(".st-key-json-weights").get_by_role("button").click()
    made = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert made["provenance"]["sha256"] and made["rows"] and made["figure"]["data"][0]["z"][0]
    with page.expect_download() as download:
        page.locator(".st-key-csv-weights").get_by_role("button").click()
    assert Path(download.value.path()).read_text(encoding="utf-8").startswith("layer,module,score")
    with page.expect_download() as download:
        page.locator(".st-key-html-weights").get_by_role("button").click()
    file = tmp_path / "weights.html"
    download.value.save_as(file)
    alone = browser.new_page()
    alone.goto(f"file://{file}")
    alone.locator(".js-plotly-plot .heatmaplayer").first.wait_for()
    alone.close()
    page.locator(".st-key-link-weights").get_by_role("button").first.click()
    page.get_by_text(f"{address}/?run=lab").wait_for()


def test_a_steer_runs_its_slider_moves_and_the_old_answers_are_stale(page: Any, address: str) -> None:
    opened(page, address, "steer", "run=lab&recipe=offset")
    page.get_by_label("One per line").fill(f"the quick brown fox\n{HOSTILE}")
    page.get_by_label("One per line").press("Control+Enter")
    settled(page)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Model restored: 0 hooks, logits identical").wait_for(timeout=120_000)
    settled(page)
    no_errors(page)
    whole(page, "steered")
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_url("**strength=1.25**")
    page.get_by_text("the result of earlier inputs").wait_for()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("at strength 1.25").wait_for()
    page.get_by_role("tab", name="Strength sweep").click()
    page.get_by_role("button", name="Sweep", exact=True).click()
    page.get_by_text("5 strengths of 2 prompts").wait_for()
    settled(page)
    no_errors(page)
    whole(page, "swept")


def test_a_pair_is_recorded_from_a_file_and_opens(page: Any, address: str, place: Path) -> None:
    opened(page, address, "record")
    page.get_by_role("textbox", name="Base model").fill(str(place / "base"))
    page.get_by_role("textbox", name="Tuned model or PEFT adapter").fill(str(place / "tuned"))
    page.get_by_role("textbox", name="Tuned model or PEFT adapter").press("Enter")
    page.get_by_role("radio", name="file").or_(page.get_by_role("button", name="file", exact=True)).first.click()
    settled(page)
    file = place / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in WORDS), encoding="utf-8")
    page.locator("input[type=file]").set_input_files(file)
    settled(page)
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("link", name="Open it").wait_for()
    whole(page, "recorded")
    page.get_by_role("link", name="Open it").click()
    page.get_by_role("heading", name="What changed").wait_for()
    settled(page)
    page.get_by_text("A record run, complete").wait_for()
    no_errors(page)
    whole(page, "recording")
