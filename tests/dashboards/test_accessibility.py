"""Every page in a browser's accessibility tree: each control has a name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.dashboards.pages import full_run
from tests.dashboards.sample_runs import save_pair
from tests.dashboards.served import served
from tests.dashboards.test_browser import CHROMIUM, browser, page, settled

__all__ = ["browser", "page"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is missing: apt-get install chromium"),
]
PAGES = ("look", "overview", "tokens", "heads", "skills", "experts", "knobs", "analyses", "steer", "record", "runs")
CONTROLS = (
    "button", "link", "textbox", "combobox", "spinbutton", "slider", "checkbox", "radio", "switch", "tab", "searchbox"
)  # fmt: skip
NAMELESS = re.compile(rf"^\s*- (?:{'|'.join(CONTROLS)})(?! \")(?=[\s:\[]|$).*$", re.MULTILINE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("names")
    full_run(home / "runs", *save_pair(home))
    with served(home / "runs") as (place, _):
        yield place


def test_the_search_for_nameless_controls_finds_one() -> None:
    tree = '- button "Run"\n- button:\n  - img\n- textbox "Base": x\n  - slider [disabled]\n- link "a":\n- buttons'
    assert [line.strip() for line in NAMELESS.findall(tree)] == ["- button:", "- slider [disabled]"]


@pytest.mark.parametrize("path", PAGES)
def test_every_control_of_a_page_has_a_name(page: Any, address: str, path: str) -> None:
    page.goto(f"{address}/{path}?run=full")
    page.locator("[data-testid=stMainBlockContainer]").locator("h1, h2").first.wait_for()
    settled(page)
    assert "Page not found" not in page.inner_text("body")
    tree = page.locator("body").aria_snapshot()
    assert tree.count("- button") + tree.count("- link") > 8
    assert NAMELESS.findall(tree) == []
