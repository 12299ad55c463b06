"""How many inputs are tried; and a file of strangers must not take the machine with it: 6 GB and no more."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_MOST = 6 << 30


@pytest.fixture
def inputs(request: pytest.FixtureRequest) -> Callable[[int, int], settings]:
    """The settings for few inputs, or with ``--runslow`` for many."""
    long = bool(request.config.getoption("--runslow"))
    return lambda few, many: settings(
        max_examples=many if long else few, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").is_file() else None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = soft if pages is None else pages * resource.getpagesize() + _MOST
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
