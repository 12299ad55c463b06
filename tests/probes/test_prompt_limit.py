"""``limit=``: every probe of prompts runs on a seeded sample of them, says so, and refuses more than there are."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probes
from tests.probes.provenance import pair, rows
from tunescope.experiments.call_forms import call_forms
from tunescope.experiments.method_steps import step_type
from workbench.errors import UserError
from workbench.method_index import all_methods
from workbench.methods import Method

OWN = {"direction", "ways-to-turn"}
"""Probes whose own ``limit`` counts prompts of each class in each part."""


def reading_prompts() -> dict[str, Method]:
    return {method.name: method for method in all_methods("probe") if "prompts" in method.arguments}


def test_every_probe_of_prompts_takes_a_limit() -> None:
    methods = reading_prompts()
    assert {name for name, method in methods.items() if not method.takes_limit} == OWN
    for name in methods.keys() - OWN:
        method = methods[name]
        assert inspect.signature(method.call).parameters["limit"].default is None, name
        assert "limit: Run on a seeded sample" in (method.call.__doc__ or ""), name
        assert "limit" not in {option.name for option in method.options}, f"{name}: the command has --limit already"
        assert "limit" in step_type(name).model_fields, name


def test_stubs_say_it() -> None:
    tree = ast.parse(Path(probes.__file__).with_suffix(".pyi").read_text())
    spelt = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name, method in reading_prompts().items():
        if name in OWN:
            continue
        options = {argument.arg for argument in spelt[method.function].kwonlyargs}
        assert "limit" in options, name


@pytest.mark.parametrize("probe", [probes.logit_lens, probes.answers, probes.patching], ids=lambda one: one.__name__)
def test_a_limit_is_a_sample(probe: Any) -> None:
    models, asked, seed = pair(), rows(8), 0 if probe is probes.answers else 3
    options = {"seed": seed} if seed else {}
    options |= {"normalise": False, "draws": 20} if probe is probes.patching else {}
    limited = probe(models, asked, limit=5, **options)
    sampled = probe(models, asked.sample(5, seed=seed), **options)
    pd.testing.assert_frame_equal(limited.frame(), sampled.frame())
    made = limited.provenance
    assert made.prompts == sampled.provenance.prompts and made.n_prompts == 5
    assert made.settings == {**sampled.provenance.settings, "limit": 5, "sampled_from": asked.hash}
    assert "limit" not in probe(models, asked, **options).provenance.settings


def test_the_call_is_said_with_its_limit() -> None:
    forms = call_forms(probes.logit_lens(pair(), rows(8), limit=5, seed=2).provenance)
    assert "limit=5" in forms.python and "--limit 5" in forms.command and "limit: 5" in forms.yaml


def test_values_of_one_per_prompt_are_sampled_with_them() -> None:
    asked, plain = rows(8), rows(8, first="a")
    picked = asked.sample_numbers(5)
    limited = probes.token_shift(pair(), asked, base_prompts=plain, max_new_tokens=2, limit=5)
    sampled = probes.token_shift(pair(), asked[picked], base_prompts=plain[picked], max_new_tokens=2)
    pd.testing.assert_frame_equal(limited.frame(), sampled.frame())


@pytest.mark.parametrize(
    ("limit", "said"), [(9, "limit=9 is more than the 8 prompts there are"), (0, "give a limit of 1 or more")]
)
def test_what_is_no_sample_is_refused(limit: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        probes.logit_lens(pair(), rows(8), limit=limit)
