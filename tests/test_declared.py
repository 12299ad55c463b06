"""What a method's own test file says is found; two files cannot say it of one method."""

from __future__ import annotations

import pytest

from tests.declared import declared
from workbench.method_index import index


def test_every_reason_is_of_a_registered_method() -> None:
    known = {entry.name for entry in index().entries}
    for name in ("NO_BENCH_CASE", "NO_PAIR", "OF_ONE_MODEL"):
        said = declared(name)
        assert said and set(said) <= known, sorted(set(said) - known)
        assert all(reason.strip() for reason in said.values())


def test_an_unknown_list_is_refused() -> None:
    with pytest.raises(ValueError, match="NO_REASON is none of NO_BENCH_CASE"):
        declared("NO_REASON")
