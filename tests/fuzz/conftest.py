"""A file of strangers must not take the machine with it: the fuzz tests may ask for 6 GB and no more."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

_MOST = 6 << 30


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").is_file() else None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = soft if pages is None else pages * resource.getpagesize() + _MOST
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
