"""Pages of results in a real browser: hostile texts stay texts, a click picks a head, an expert, a direction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.dashboards.pages import full_run
from tests.dashboards.sample_runs import save_pair
from tests.dashboards.served import served
from tests.dashboards.test_browser import CHROMIUM, browser, settled
from tunescope.experiments import Experiment

__all__ = ["browser"]
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is missing: apt-get install chromium"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a run whose every text would be obeyed by a careless page."""
    home = tmp_path_factory.mktemp("pages")
    full_run(home / "runs", *save_pair(home))
    with served(home / "runs") as (running, _):
        yield running


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    shown = browser.new_page(viewport={"width": 1300, "height": 1000})
    shown.set_default_timeout(90_000)
    shown.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    yield shown
    shown.close()


def test_an_experiment_file_is_downloaded(page: Any, address: str) -> None:
    """What a page computed, opened below its panel and saved as a file that can be read."""
    page.goto(f"{address}/heads?layer=1&head=2")
    page.get_by_role("button", name="Read what it writes").click()
    page.locator(".st-key-experiment-words button").first.click()
    shown = page.get_by_text("Makes these results again")
    shown.wait_for()
    with page.expect_download() as given:
        page.locator(".st-key-yaml-words button").first.click()
    assert given.value.suggested_filename == "experiment.yaml"
    (step,) = Experiment.load(given.value.path()).steps.values()
    assert step.plain().items() >= {"layer": 1, "head": 2}.items()


def still(page: Any) -> None:
    """Wait until the page has been still for a moment."""
    for _ in range(2):
        page.wait_for_timeout(600)
        settled(page)


def click(page: Any, chart: str, x: float, y: float) -> None:
    """Click a chart at a place in the units of its axes."""
    page.locator(f".st-key-{chart} .js-plotly-plot .main-svg").first.wait_for()
    still(page)
    place = page.evaluate(
        """([chart, x, y]) => {
            const plot = document.querySelector(`.st-key-${chart} .js-plotly-plot`), layout = plot._fullLayout
            plot.scrollIntoView({block: "center"})
            const box = plot.getBoundingClientRect()
            return [box.left + layout.xaxis._offset + layout.xaxis.d2p(x),
                    box.top + layout.yaxis._offset + layout.yaxis.d2p(y)]
        }""",
        [chart, x, y],
    )
    page.mouse.move(*place)
    page.wait_for_timeout(300)
    page.mouse.click(*place)


def opened(page: Any, address: str, path: str, query: str = "") -> None:
    page.goto(f"{address}/{path}?{query}")
    page.get_by_role("heading", level=1).first.wait_for()
    still(page)
    assert page.locator("[data-testid=stException]").count() == 0


@pytest.mark.parametrize("path", ["tokens", "heads", "skills", "experts", "knobs"])
def test_no_script_runs_and_nothing_is_fetched(page: Any, address: str, path: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, address, path, "layer=1&prompt=1")
    page.locator(".js-plotly-plot").first.wait_for()
    still(page)
    assert page.locator("[data-testid=stException]").count() == 0
    away = [url for url in asked if not url.startswith((address, "data:", "blob:", address.replace("http", "ws")))]
    assert not [url for url in away if "example.org" in url], away


def test_a_click_picks_a_head_and_its_attention_is_read(page: Any, address: str) -> None:
    opened(page, address, "heads")
    click(page, "chart-heads", 2.3, 1.0)  # away from the middle of the cell
    page.wait_for_url("**layer=1**")
    page.get_by_role("heading", name="Head L1H2").wait_for()
    still(page)
    page.get_by_role("button", name="Read attention").click()
    page.locator(".st-key-chart-attention .js-plotly-plot").wait_for()


def test_a_click_picks_an_expert_and_leads_to_steer(page: Any, address: str) -> None:
    opened(page, address, "experts")
    click(page, "chart-experts", 5.0, 2.0)
    page.get_by_role("heading", name="Expert L2E5").wait_for()
    still(page)
    page.get_by_text("Steer with L2E5 switched off").click()
    page.wait_for_url("**/steer?**off=L2E5**")
    page.get_by_text("experts off L2E5").wait_for()


def test_a_click_picks_a_direction(page: Any, address: str) -> None:
    opened(page, address, "knobs")
    click(page, "chart-concepts", 1.0, 0.0)
    page.wait_for_url("**direction=1**")
    page.get_by_text("Direction 1 of layer 1").wait_for()
