"""Tunescope: a fine-tuned transformer seen beside its base. ``import tunescope as ts`` is the whole of it in one name.

``ts.load_pair``, ``ts.record``, ``ts.Prompts``, … are those of :mod:`workbench`; ``ts.probes`` and
``ts.interventions`` are the packages. Nothing is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import workbench
from workbench import __version__ as __version__
from workbench.lazy import missing

_PACKAGES = ("interventions", "probes")
__all__ = [*_PACKAGES, *workbench.__all__]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(name)
    if name in workbench.__all__:
        return getattr(workbench, name)
    raise missing("tunescope", name, __all__)


def __dir__() -> list[str]:
    return sorted(__all__)
