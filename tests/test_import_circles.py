"""No file imports, at any depth and even inside a function, a file that imports it."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

PACKAGES = ("tunescope", "workbench", "probes", "interventions", "dashboards")


def order(imports: dict[str, set[str]]) -> None:
    """Raises CycleError, which names the circle."""
    TopologicalSorter(imports).prepare()


def test_there_are_no_circles() -> None:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) > 400
    order({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})


def test_a_circle_is_named() -> None:
    with pytest.raises(CycleError, match=r"'a', 'b', 'a'|'b', 'a', 'b'"):
        order({"a": {"b"}, "b": {"a"}})
