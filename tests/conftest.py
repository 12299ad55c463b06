"""Every test run checks every shape (jaxtyping + beartype), offline, on few threads."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook(["workbench", "probes", "interventions"], "beartype.beartype")

from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
LONG = frozenset((TESTS / "long_tests.txt").read_text(encoding="utf-8").splitlines())
"""Files and functions that take longer than the rest, as the gate measured them (.ci/long_tests.py)."""
STORIES = TESTS.parents[1] / "shared" / "models" / "stories260K"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests that take long")
    parser.addoption("--null-draws", type=int, default=4, help="null adapters for each probe (20: 12 minutes)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runslow"):
        slow = {item.path for item in items if "slow" in item.keywords}
        items.sort(key=lambda item: _turn(item, slow))
        return
    skip = pytest.mark.skip(reason="slow; run with --runslow")
    whole = all(Path(folder).resolve() in (TESTS, TESTS.parent) for folder in config.args)
    for item in items:
        if "slow" in item.keywords or (whole and _is_long(item)):
            item.add_marker(skip)


def _is_long(item: pytest.Item) -> bool:
    """Whether its file or function is listed: part of the whole suite, it is left to the gate."""
    return item.nodeid.partition("::")[0] in LONG or item.nodeid.partition("[")[0] in LONG


def _turn(item: pytest.Item, slow: set[Path]) -> tuple[bool, str, str]:
    """The long files first, so that no worker waits for one at the end, and by name, so that the app's take turns with
    others: a server and a browser are enough at a time."""
    return (False, item.path.name, str(item.path)) if item.path in slow else (True, "", "")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """What is there before a file of tests is not walked by every collection of garbage in it: Streamlit collects after
    each rerun, which takes a second with torch and six thousand tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def null_draws(request: pytest.FixtureRequest) -> int:
    """Null adapters that each registered probe is run on."""
    return int(request.config.getoption("--null-draws"))


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of the small pretrained Llama; the test skips where it is absent."""
    folder = Path(os.environ.get("TUNESCOPE_STORIES", STORIES))
    if not folder.is_dir():
        pytest.skip(f"the pretrained model is not at {folder}; set TUNESCOPE_STORIES to its folder")
    return folder
