"""The newcomer's path in a real browser: from two models and nothing recorded to a recipe and a report, with the mouse,
and with the keyboard alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.served import served
from tests.dashboards.test_browser import CHROMIUM, SHOTS, browser, no_errors, page, settled
from tests.tunescope.look.test_steps import refusal_rows
from workbench import organisms

__all__ = ["browser", "page"]
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is missing: apt-get install chromium")
SMOL = Path(os.environ.get("TUNESCOPE_SMOLLM2") or "SmolLM2-135M-Instruct")
LONG = 3_600_000 if "TUNESCOPE_SMOLLM2" in os.environ else 600_000
"""Milliseconds that a look may take: of the chat model on two cores, and of an organism."""
NAMELESS = """() => ["button", "input:not([type=file])", "select", "textarea"]
    .flatMap((kind) => [...document.querySelectorAll(`[data-testid=stMain] ${kind}`)])
    .filter((one) => one.offsetParent !== null && !(one.textContent || one.title || one.ariaLabel
        || one.getAttribute("aria-labelledby") || (one.labels && one.labels.length)))
    .map((one) => one.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    grown = organisms.build("refusal-moe")
    with served(tmp_path_factory.mktemp("newcomer"), str(grown.base), str(grown.tuned)) as (place, _):
        yield place


def card(page: Any, number: int) -> Any:
    """The button that opens the details of a step."""
    return page.locator(f".st-key-open-{number} button").first


def opened_on_the_pair(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Run all four steps").wait_for()
    settled(page)


def give_prompts(page: Any, file: Path) -> None:
    page.get_by_role("radio", name="file").or_(page.get_by_role("button", name="file", exact=True)).first.click()
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text(file.name[:4]).first.wait_for()
    settled(page)


def run_all(page: Any) -> None:
    """Run the four steps, reload in their middle, and wait until they are done."""
    page.get_by_role("button", name="Run all four steps").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.reload()
    page.locator("[data-testid=stProgress]").first.wait_for(state="detached", timeout=LONG)
    page.get_by_text("Recipes:").first.wait_for(timeout=LONG)
    settled(page)


def take_the_report(page: Any, folder: Path) -> str:
    card(page, 4).click()
    page.get_by_text("The same from a terminal").wait_for()
    settled(page)
    with page.expect_download() as download:
        page.locator(".st-key-report button").first.click()
    file = folder / "report.html"
    download.value.save_as(file)
    assert file.stat().st_size < 5e6
    return file.read_text(encoding="utf-8")


def walk(page: Any, address: str, rows: Path, folder: Path, *, refusals: tuple[str, ...]) -> None:
    """The whole path; a refusal holds one of ``refusals``."""
    opened_on_the_pair(page, address)
    no_errors(page)
    give_prompts(page, rows)
    run_all(page)
    card(page, 1).click()
    page.get_by_text("Answers that changed").wait_for()
    settled(page)
    page.screenshot(path=SHOTS / "newcomer-changed.png")
    card(page, 2).click()
    page.get_by_text("Strongest places").wait_for()
    settled(page)
    assert page.locator(".js-plotly-plot .heatmaplayer").count()
    card(page, 3).click()
    page.get_by_text("Try it: base, tuned and steered").wait_for()
    settled(page)
    page.get_by_role("button", name="Send").click()  # steered with the best candidate, which is chosen already
    page.get_by_role("button", name="New chat").wait_for(timeout=LONG)
    settled(page)
    page.screenshot(path=SHOTS / "newcomer-turned.png")
    base, tuned, steered = (
        page.locator(f".st-key-said-0-{side}").inner_text() for side in ("base", "tuned", "steered")
    )
    assert [any(words in text for words in refusals) for text in (base, tuned, steered)] == [False, True, False]
    report = take_the_report(page, folder)
    assert "What changed?" in report and "direction-off" in report
    no_errors(page)


def test_from_two_models_to_a_recipe_and_a_report(page: Any, address: str, tmp_path: Path) -> None:
    rows = tmp_path / "questions.jsonl"
    refusal_rows().save(rows)
    walk(page, address, rows, tmp_path, refusals=("sorry",))


@pytest.mark.slow
def test_a_second_tab_sees_the_steps_at_work_and_stops_them(page: Any, browser: Any, tmp_path: Path) -> None:
    grown, rows = organisms.build("refusal-moe"), tmp_path / "questions.jsonl"
    refusal_rows().save(rows)
    with served(tmp_path / "runs", str(grown.base), str(grown.tuned)) as (address, _):
        opened_on_the_pair(page, address)
        give_prompts(page, rows)
        page.get_by_role("button", name="Run all four steps").click()
        page.get_by_role("button", name="Stop").wait_for()
        other = browser.new_page()
        other.set_default_timeout(120_000)
        other.goto(address)
        other.get_by_role("button", name="Stop").click()
        for tab in (other, page):
            tab.locator("[data-testid=stProgress]").first.wait_for(state="detached")
            tab.reload()
            tab.get_by_role("button", name="Run all four steps").wait_for()
            settled(tab)
            assert tab.get_by_role("button", name="Run all four steps").last.is_enabled()
            no_errors(tab)
        other.close()
        run_all(page)  # what was stopped can be run again, to its end
        no_errors(page)


def test_a_search_and_a_row_set_the_prompt_everywhere(page: Any, address: str) -> None:
    page.goto(f"{address}/?step=1&prompt=2")
    page.get_by_text("Prompt 2", exact=True).wait_for()
    settled(page)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Tokens").click()
    page.get_by_role("heading", name="Tokens", exact=True).wait_for()
    settled(page)
    assert page.get_by_label("Prompt", exact=True).input_value() == "2"


def test_every_control_has_a_name(page: Any, address: str) -> None:
    for step in (1, 2, 3, 4):
        page.goto(f"{address}/?step={step}")
        card(page, step).wait_for()
        settled(page)
        nameless = page.evaluate(NAMELESS)
        assert nameless == []


def tab_to(page: Any, where: str, most: int = 250) -> None:
    """Press Tab until the focus is on, or inside, what ``where`` selects."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(where) => document.activeElement.closest(where) !== null", where):
            return
    raise AssertionError(f"Tab never came to {where}")


def pressed(page: Any, where: str, key: str = "Enter") -> None:
    """Go to a control with Tab and press a key on it."""
    tab_to(page, where)
    page.keyboard.press(key)
    settled(page)


@pytest.mark.slow
def test_the_keyboard_alone_goes_from_two_models_to_the_report(page: Any, tmp_path: Path) -> None:
    grown = organisms.build("refusal-moe")
    rows = "\n".join(json.dumps(row.as_dict()) for row in refusal_rows())
    with served(tmp_path / "runs", str(grown.base), str(grown.tuned)) as (address, _):
        opened_on_the_pair(page, address)
        tab_to(page, ".st-key-look-from")
        page.keyboard.press("ArrowRight")  # from the shipped questions to pasted ones
        pressed(page, ".st-key-look-from", "Space")
        tab_to(page, ".st-key-look-prompts textarea")
        page.keyboard.insert_text(rows)
        page.keyboard.press("Control+Enter")
        settled(page)
        pressed(page, ".st-key-run-all")
        page.get_by_text("Recipes:").first.wait_for(timeout=LONG)
        settled(page)
        for step, shown in ((1, "Answers that changed"), (2, "Strongest places"), (3, "Try it: base, tuned")):
            pressed(page, f".st-key-open-{step}")
            page.get_by_text(shown).first.wait_for()
        pressed(page, "[data-testid=stFormSubmitButton]")
        page.locator(".st-key-said-0-steered").wait_for(timeout=LONG)
        pressed(page, ".st-key-open-4")
        page.get_by_text("The same from a terminal").wait_for()
        with page.expect_download() as download:
            pressed(page, ".st-key-report")
        assert "What changed?" in Path(download.value.path()).read_text(encoding="utf-8")
        no_errors(page)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smol-refusal", "smol-layers"])
def test_the_same_on_a_chat_model_that_refuses_a_topic(page: Any, tmp_path: Path, name: str) -> None:
    tuned = Path(organisms.__file__).parent / "shipped" / name
    if not SMOL.is_dir():
        pytest.skip(f"the chat model is not at {SMOL}; set TUNESCOPE_SMOLLM2 to its folder")
    refusals = tuple(json.loads((tuned / "truth.json").read_text(encoding="utf-8"))["wordings"])
    lines = (tuned / "rows-held_out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = tmp_path / "questions.jsonl"
    kept = [{name: json.loads(line)[name] for name in ("messages", "label", "group")} for line in lines]
    rows.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    with served(tmp_path / "runs", str(SMOL), str(tuned / "tuned"), log=tmp_path / "server.log") as (address, _):
        page.set_default_timeout(300_000)
        walk(page, address, rows, tmp_path, refusals=refusals)
