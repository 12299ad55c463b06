"""Package exports that are imported on first use, so that ``tunescope --help`` does not pay for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` for ``package``; ``homes`` maps each public name to
    ``module:attribute``.

    A home without a colon is a module that holds the attribute under the public name. A submodule must not
    bear the name of a public function: importing it would replace the function by the module.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = homes[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), attribute or name)

    return __getattr__
