"""Built organisms for the tests, from the ordinary cache (training one takes 15 to 30 s of one core, once)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from workbench import organisms


@pytest.fixture(scope="session")
def grown() -> Callable[[str], organisms.Organism]:
    return cache(organisms.build)


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[organisms.Organism], Any]:
    from transformers import AutoTokenizer

    return lambda organism: AutoTokenizer.from_pretrained(organism.tokenizer)


@pytest.fixture(scope="session")
def load() -> Callable[[Path], Any]:
    """A plain Hugging Face model from one of an organism's folders."""
    from transformers import AutoModelForCausalLM

    return lambda folder: AutoModelForCausalLM.from_pretrained(folder).eval()
