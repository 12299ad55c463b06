"""Every organism reaches its bars from five seeds (minutes of training, so a file of its own for parallel runs)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from workbench import organisms


def weights(organism: organisms.Organism) -> str:
    return hashlib.sha256((organism.base / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", organisms.names())
def test_five_seeds_reach_every_bar(name: str, tmp_path: Path) -> None:
    built = [organisms.build(name, seed=seed, cache=tmp_path) for seed in range(5)]
    assert all(bar.miss == 0 for organism in built for bar in organism.bars)
    assert len({weights(organism) for organism in built}) == 5
