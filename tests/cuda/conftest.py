"""The room runs where the device under test is, and is skipped elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cuda.place import DEVICE, PRESENT, save_pair

_REASON = "no CUDA here; TUNESCOPE_TEST_DEVICE=cpu runs these tests on the CPU, to check the tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        for line in ("is_gradient_checkpointing.*:FutureWarning", "generation flags.*", "lora_bias=True.*"):
            item.add_marker(pytest.mark.filterwarnings(f"ignore:.*{line}"))
        if not PRESENT:
            item.add_marker(pytest.mark.skip(reason=_REASON))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``llama-base``, ``llama-tuned``, ``olmoe-base``, ``olmoe-tuned``."""
    folder = tmp_path_factory.mktemp("pairs")
    for family in ("llama", "olmoe"):
        save_pair(folder, family)
    return folder


@pytest.fixture
def memory() -> Iterator[None]:
    """Afterwards no more of the device's memory is held than before, beyond the blocks libraries keep for good."""
    if DEVICE.type != "cuda":
        yield
        return
    some = torch.ones(64, 64, device=DEVICE)
    torch.addmm(some[0], some, some @ some)  # libraries take their workspaces at their first product
    del some
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    yield
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 16 * 2**20
