"""YAML of strangers: read as written or refused in one sentence, with bounded work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tunescope.experiments import Experiment
from tunescope.experiments.materials import file_hash
from tunescope.experiments.yaml_text import read_yaml
from workbench import bounded
from workbench.bounded import matching, rendering
from workbench.errors import UserError

START = "name: a\npair: {base: b, tuned: t}\nprompts: {rows: [x]}\n"
STEP = "steps: {one: {do: localize weights}}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = (
    (START + STEP + "seed: true\n", "true or false"),
    (START + STEP + "seed: 1:30\n", "seed"),
    (START + STEP + "seed: " + "9" * 5000 + "\n", "300 digits"),
    (START + STEP + f"seed: {10**200}\n", "seed"),
    (START + STEP + "seed: -1\n", "seed"),
    (START + "steps: {e: {do: diff, controls: 1000000000}}\n", "controls"),
    (START + "steps: {e: {do: diff, options: {max_new_tokens: 1000000000}}}\n", "more than"),
    (START + STEP + "sweep: {seed: !!set {1, 2}}\n", "tag"),
    (START + STEP + "sweep: {seed: [!!binary aGk=]}\n", "tag"),
    (START + STEP + 'about: "a\\ud800"\n', "surrogate"),
    (BOMB, "aliases"),
    ("a: &a [*a]\n", "inside of what it names"),
    ("[" * 50_000, "YAML|nested"),
)


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_it_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Experiment.parse(text)
    assert "\n" not in str(caught.value)


def test_numbers_are_read_as_written() -> None:
    found: Any = read_yaml("[1:30, 1_000, 0x1F, off, 1e3, &a 7, *a, 0, -3]", "x")
    assert found == ["1:30", "1_000", "0x1F", "off", 1000.0, 7, 7, 0, -3]


@pytest.mark.parametrize("digits", ["007", "010", "+5", "-0", "00"])
def test_a_number_that_may_be_meant_as_text_is_asked_about(digits: str) -> None:
    with pytest.raises(UserError, match=rf"'{re.escape(digits)}' is -?\d+ as a number: write that, or put it"):
        read_yaml(f"answer: {digits}", "x")
    assert read_yaml(f"answer: '{digits}'", "x") == {"answer": digits}


def test_a_folder_given_as_a_file_is_not_hashed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file"):
        file_hash(tmp_path)


def test_patterns_and_templates_without_end_are_told_in_time() -> None:
    assert matching([r".*\.(q|v)_proj"], ["model.layers.0.self_attn.q_proj"]) == "fine"
    assert matching([r"(a+)+$"], ["a" * 60 + "!"]) == "too long"
    values = {"messages": [{"role": "user", "content": "hi"}]}
    assert rendering("{% for m in messages %}{{ m.content }}{% endfor %}", values, 10**6) == "fine"
    doubling = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    assert rendering(doubling, values, 10**6) == "too large"


@pytest.mark.slow
def test_a_machine_that_is_busy_makes_no_pattern_endless() -> None:
    assert bounded._tried("import time; time.sleep(16)", {}) == "fine"
