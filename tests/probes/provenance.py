"""Calls of probes for the tests that run over the registry: provenance, and the round trip result -> step -> call.

A method's own test file says them, as ``calls_of_<function>() -> Calls`` at the top level of any file in tests/probes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import probes
from probes.results import ProbeResult
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.method_index import index
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.prompt_limit import takes_limit
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

RUN = {"batch_size": 3, "max_tokens": 64, "draws": 50, "seed": 3}


@dataclass(frozen=True)
class Calls:
    """Calls that between them give every argument another value than its default; ``options`` is what the probe's
    ``**options`` are read into."""

    given: list[dict[str, Any]]
    options: type | None = None

    def arguments(self, probe: Callable[..., Any]) -> dict[str, Any]:
        """The arguments and options of ``probe`` with their defaults, without those that change no number."""
        found: dict[str, Any] = {}
        for parameter in inspect.signature(probe).parameters.values():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                found[parameter.name] = parameter.default
                continue
            assert self.options is not None, f"say what the {parameter.name} of {probe.__name__} are read into"
            found |= {field.name: field.default for field in dataclasses.fields(self.options)}
        left_out = ("progress", "device", *(["limit"] if takes_limit(probe) else []))
        return {name: default for name, default in found.items() if name not in left_out}


def takes_progress(probe: Callable[..., Any], calls: Calls) -> bool:
    """Whether a call may be handed a bar."""
    options = [field.name for field in dataclasses.fields(calls.options)] if calls.options is not None else []
    return "progress" in (*inspect.signature(probe).parameters, *options)


_REPLACED: ContextVar[Callable[[Any], ModelPair] | None] = ContextVar("replaced", default=None)


@contextmanager
def pairs_replaced(replace: Callable[[Any], ModelPair]) -> Iterator[None]:
    """Every :func:`pair` and :func:`recording` that a call makes inside is of ``replace(base model)`` instead."""
    before = _REPLACED.set(replace)
    try:
        yield
    finally:
        _REPLACED.reset(before)


def replaced(base: Any) -> ModelPair | None:
    """What stands in for a pair of ``base``; None where pairs are as they are."""
    replace = _REPLACED.get()
    return None if replace is None else replace(base)


def pair(family: str = "llama") -> ModelPair:
    base = tiny_model(family)
    return replaced(base) or load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)


def rows(n: int = 16, first: str = "the") -> Prompts:
    """Pairs of prompts in groups, of one length; eight groups, so that a test by groups can reach q <= .05."""
    return Prompts.of([
        {"prompt": f"{first} {'xyzq'[i % 4]} {'abcd'[i // 4]}", "contrast": f"{first} {'qxyz'[i % 4]} {'abcd'[i // 4]}",
         "answer": " fox", "distractor": " dog", "label": i % 2 == 0, "group": f"g{i // 2}"}
        for i in range(n)
    ])  # fmt: skip


def recording(site: str, **options: Any) -> Recording:
    return record(pair(), rows(12), [site], positions="last", **options)


def given_of(function: str, replace: Callable[[Any], ModelPair]) -> dict[str, Any]:
    """The arguments of the first call of a probe, on pairs that ``replace(base model or pair)`` makes.

    A pair that the call built itself is handed to ``replace`` too; a recording that it planted stays.
    """
    made: list[ModelPair] = []

    def stand_in(of: Any) -> ModelPair:
        made.append(replace(of))
        return made[-1]

    with pairs_replaced(stand_in):
        given = dict(calls_of(function).given[0])
    for role in ("pair", "subject"):
        if isinstance(given.get(role), ModelPair) and not any(given[role] is one for one in made):
            given[role] = stand_in(given[role])
    both = given.get("base"), given.get("tuned")
    if not made and all(isinstance(side, AdaptedModel) and hasattr(side.hf, "peft_config") for side in both):
        whole = both[1].hf
        new = stand_in(load_pair(whole.get_base_model(), whole, tokenizer=tokenizer(), check=False))
        given |= {"base": new.base, "tuned": new.tuned}
    given["of_models"] = bool(made)
    return given


@cache
def homes() -> dict[str, str]:
    """Function -> the module of tests/probes that says its calls."""
    root = Path(__file__).parent
    return {
        name: ".".join(("tests", "probes", *path.relative_to(root).with_suffix("").parts))
        for path in sorted(root.rglob("*.py"))
        for name in re.findall(r"^def calls_of_(\w+)\(", path.read_text(), re.MULTILINE)
    }


def calls_of(function: str) -> Calls:
    """The calls of the public function of that name."""
    assert function in homes(), f"no file in tests/probes defines calls_of_{function}()"
    calls: Calls = getattr(import_module(homes()[function]), f"calls_of_{function}")()
    return calls


def probes_with_results() -> list[str]:
    """The public functions of ``probes`` that return a probe's result."""
    return sorted(name for name in {*probes.__all__, *index().functions("probes")} if _returns_a_result(name))


def _returns_a_result(name: str) -> bool:
    function = getattr(probes, name)
    returned = getattr(function, "__annotations__", {}).get("return") if inspect.isfunction(function) else None
    if isinstance(returned, str):
        returned = getattr(sys.modules[function.__module__], returned, None)
    return isinstance(returned, type) and issubclass(returned, ProbeResult)
