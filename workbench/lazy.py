"""Package exports that are imported on first use, so that ``tunescope --help`` does not pay for torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` for ``package``; ``homes`` maps each public name to
    ``module:attribute``.

    A home without a colon is a module that holds the attribute under the public name. A submodule must not
    bear the name of a public function: importing it would replace the function by the module.
    Type checkers read the package's ``__init__.pyi``, which ``make stubs`` writes from the same table.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            return _method(package, name, homes)
        module, _, attribute = homes[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), attribute or name)

    return __getattr__


def _method(package: str, name: str, homes: Mapping[str, str]) -> Any:
    """The function of a registered method, which no table need name."""
    from workbench.method_index import index

    methods = {} if name.startswith("_") else index().functions(package)
    if name not in methods:
        raise missing(package, name, {**homes, **methods})
    return getattr(import_module(methods[name]), name)


def missing(package: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error of a name that a package does not have, with the closest one that it has."""
    close = [] if name.startswith("_") else difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    # named but without the object, else Python's traceback adds a second suggestion
    return AttributeError(f"module {package!r} has no attribute {name!r}{hint}", name=name)
