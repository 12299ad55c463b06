"""Other steering libraries, where they are installed; a test that needs an absent one skips and says how to get it.

They are no dependencies: install them beside ours without theirs, for example
``pip install --no-deps --target peers pyvene steering-vectors repeng matplotlib`` and put the folder on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest


def peer(name: str) -> Any:
    """The module ``name``; skips the test where it cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "repeng" and not hasattr(np, "float_"):
            np.float_ = np.float64  # type: ignore[attr-defined]  # repeng 0.4 annotates with the name numpy 2 dropped
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed ({error})")
