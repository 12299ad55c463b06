"""A local Ray cluster for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

QUIET = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # ray leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A local cluster of three CPUs for the module (however many the machine has)."""
    ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'tunescope[ray]')")
    ray.init(
        address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
        object_store_memory=200 * 2**20,
    )  # fmt: skip
    yield ray
    ray.shutdown()


def worker_processes() -> list[Any]:
    """The workers that this process started."""
    import psutil

    alive = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie too
            if "ModelWorker" in " ".join(child.cmdline()):
                alive.append(child)
    return alive
