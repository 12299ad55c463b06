"""YAML as people write it: words stay words, numbers are numbers, and what is written is read back."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tunescope.experiments.yaml_text import read_yaml, write_yaml


def test_on_and_off_are_words_and_1e_3_is_a_number() -> None:
    assert read_yaml("{on: [a], off: yes, k: 1e-3, n: 3, t: true, d: 2020-01-01}", "x") == {
        "on": ["a"], "off": "yes", "k": 0.001, "n": 3, "t": True, "d": "2020-01-01",
    }  # fmt: skip


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PLAIN)
@example({"\x85": None, "a\u2028b": ["\x85", "é\x85", "\u2029 \n", "\r", "\ufeff"]})
def test_any_plain_value_is_written_and_read_back(value: Any) -> None:
    assert read_yaml(write_yaml(value), "x") == value
