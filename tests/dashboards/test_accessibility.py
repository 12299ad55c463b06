"""Every page in a browser's accessibility tree: each control has a name; and the four steps with the keyboard alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.pages import full_run
from tests.dashboards.sample_runs import save_pair
from tests.dashboards.served import served
from tests.dashboards.test_browser import CHROMIUM, browser, no_errors, page, settled
from tests.tunescope.look.test_steps import refusal_rows
from workbench import organisms

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
LONG = 1_800_000


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


def tab_to(page: Any, where: str, most: int = 250) -> None:
    """Press Tab until the focus is on, or inside, what ``where`` selects."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(where) => document.activeElement.closest(where) !== null", where):
            return
    raise AssertionError(f"Tab never came to {where}")


def test_the_keyboard_alone_goes_from_two_models_to_the_report(page: Any, tmp_path: Path) -> None:
    grown = organisms.build("refusal-moe")
    rows = "\n".join(json.dumps(row.as_dict()) for row in refusal_rows())
    with served(tmp_path / "runs", str(grown.base), str(grown.tuned)) as (address, _):
        page.goto(address)
        page.get_by_role("button", name="Run all four steps").wait_for()
        settled(page)
        tab_to(page, ".st-key-look-from")
        page.keyboard.press("ArrowRight")  # from the shipped questions to pasted ones
        page.keyboard.press("Space")
        page.get_by_label("One a line, or rows of JSON").wait_for()
        settled(page)
        tab_to(page, ".st-key-look-prompts textarea")
        page.keyboard.insert_text(rows)
        page.keyboard.press("Control+Enter")
        settled(page)
        tab_to(page, ".st-key-run-all")
        page.keyboard.press("Enter")
        page.get_by_text("Recipes:").first.wait_for(timeout=LONG)
        settled(page)
        for step, shown in ((1, "Answers that changed"), (2, "Strongest places"), (3, "Try it: base, tuned")):
            tab_to(page, f".st-key-open-{step}")
            page.keyboard.press("Enter")
            page.get_by_text(shown).first.wait_for()
            settled(page)
        tab_to(page, "[data-testid=stFormSubmitButton]")
        page.keyboard.press("Enter")
        page.locator(".st-key-said-0-steered").wait_for(timeout=LONG)
        settled(page)
        tab_to(page, ".st-key-open-4")
        page.keyboard.press("Enter")
        page.get_by_text("The same from a terminal").wait_for()
        settled(page)
        tab_to(page, ".st-key-report")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert "What changed?" in Path(download.value.path()).read_text(encoding="utf-8")
        no_errors(page)
