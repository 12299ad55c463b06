"""Every test run checks every shape (jaxtyping + beartype), offline, on few threads."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook(["workbench", "probes", "interventions"], "beartype.beartype")

from pathlib import Path

import pytest
import torch

STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260K"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--null-draws", type=int, default=4, help="null adapters for each probe (20: 12 minutes)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runslow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --runslow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
