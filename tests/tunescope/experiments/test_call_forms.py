"""A result says its call: provenance -> step -> the same options, over every registered probe."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from typer.testing import CliRunner

import probes
from probes.call_settings import plain
from tests.probes.provenance import calls_of, homes
from tunescope.cli.app import app
from tunescope.experiments.call_forms import call_forms, method_of, options_of_result, step_of
from tunescope.experiments.method_steps import step_type
from workbench.errors import NotSupported
from workbench.method_index import all_methods, index
from workbench.methods import VERBS, Method
from workbench.results import Provenance

PROBES = sorted({entry.function for entry in index().entries if entry.kind == "probe"})


def test_every_registered_probe_is_called_by_the_provenance_test() -> None:
    """So that none can be forgotten: the calls there are what the round trip below is made of."""
    assert set(PROBES) <= set(homes())


@pytest.mark.parametrize("function", PROBES)
def test_a_result_becomes_the_step_that_makes_it(function: str) -> None:
    given = calls_of(function).given[0]
    result = getattr(probes, function)(**given)
    method = method_of(result.provenance)
    said = options_of_result(result.provenance)
    for name, value in given.items():
        option = method.option(name)
        if option is not None and option.kind != "python" and plain(value) != plain(option.default):
            wanted = value.name if option.kind == "behaviour" and hasattr(value, "name") else plain(value)
            assert name in said and said[name] == wanted, name
    step = step_type(method.name).model_validate({**_missing(method, given), **step_of(result.provenance)})
    again = step.settings()
    for name in said:
        if name in type(step).model_fields and name in step_of(result.provenance):
            assert plain(again[name]) in (said[name], [said[name]])
    forms = call_forms(result.provenance)
    compile(forms.python, "call", "exec")
    assert method.command in forms.yaml and shlex.split(forms.command)[2] == method.name


def _missing(method: Method, given: dict[str, Any]) -> dict[str, Any]:
    """Required options that only a file or a name can give."""
    stand_ins = {
        "prompts": "queries",
        "prompt sets": {"a": "a"},
        "behaviour": "begins:a",
        "file": "f",
        "experts": ["L0E0"],
    }
    return {
        option.name: stand_ins[option.kind]
        for option in method.options
        if option.required and option.kind in stand_ins and option.name in given
    }


def test_a_result_of_a_method_that_is_gone_is_a_sentence() -> None:
    with pytest.raises(NotSupported, match="'old_probe' that made this result is not installed"):
        method_of(Provenance(probe="old_probe", models={}))


FRONTED = [method for kind in VERBS for method in all_methods(kind) if "tests" not in method.module]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", FRONTED, ids=lambda method: method.name)
def test_the_help_of_every_method_has_question_example_and_help_for_each_option(method: Method) -> None:
    done = CliRunner().invoke(app, [*method.command.split(), "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and method.question.split("?")[0][:40] in done.stdout
    assert f"Example: tunescope {method.command}" in done.stdout
    assert method.cost, "say what it costs"
    bare = [option.name for option in method.options if option.kind != "python" and not option.help]
    assert not bare, f"say what they are, in the docstring's Args or under the field: {bare}"
