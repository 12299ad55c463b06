"""Small base and tuned pairs with planted truth, trained on a CPU in seconds and cached.

``organisms.build("context-knob")`` trains (or finds) one; its ``base`` and ``tuned`` are ordinary Hugging Face folders,
its ``truth`` says what a probe should find.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.organisms.catalogue import build, location, names, real_names, retune, summary
    from workbench.organisms.copies import endings, tune_copy
    from workbench.organisms.organism import Bar, Organism, Truth

_HOME = {
    "build": "catalogue",
    "location": "catalogue",
    "names": "catalogue",
    "real_names": "catalogue",
    "retune": "catalogue",
    "summary": "catalogue",
    "endings": "copies",
    "tune_copy": "copies",
    "Bar": "organism",
    "Organism": "organism",
    "Truth": "organism",
}
__all__ = [
    "Bar", "Organism", "Truth", "build", "endings", "location", "names", "real_names", "retune", "summary", "tune_copy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
