"""The registry of methods: what each probe, intervention, behaviour and training is, said once beside its code.

The file that defines a method registers it with :func:`method`; command, experiment step, form, report section, docs
page and tests are derived from the registration, the signature and the docstring. This module knows no method.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

from workbench.method_options import Option, options_of, summary_of
from workbench.prompt_limit import takes_limit, with_limit

Kind = Literal["probe", "intervention", "behaviour", "training"]
Registered = TypeVar("Registered", bound=Callable[..., Any])

ROLES = ("pair", "subject", "model", "base", "tuned", "recording", "prompts", "progress", "seed", "out")
"""Parameters that a front fills itself: they are no options."""
VERBS: dict[str, str] = {"probe": "localize", "training": "train", "behaviour": "measure"}
"""Kind -> the command, and the word of an experiment's step, that its methods are called by."""


@dataclass(frozen=True)
class Recorded:
    """What a method that reads a recording wants recorded, where it is given none."""

    sites: tuple[str, ...] = ("resid_post",)
    positions: str = "last"
    layers: Any = None


@dataclass(frozen=True)
class Needs:
    """What a method cannot do without, checked before a model is loaded."""

    columns: tuple[str, ...] = ()
    """Columns that the prompts must have, in at least one row."""
    wants: Mapping[str, str] = field(default_factory=dict)
    """Column -> when it is needed: ``{"distractor": "metric=logit_diff"}``."""
    per_class: int = 0
    """Rows that each class of the labels must have, of two classes or more; 0: whatever they are."""
    experts: bool = False
    """A mixture of experts."""
    adapter: bool = False
    """A PEFT adapter as the tuned model."""
    folders: bool = False
    """Folders are enough; no model need be loaded."""
    instead: str = ""
    """What would do where this is missing, for the error's last clause."""


@dataclass(frozen=True)
class Method:
    """One registered method; ``call`` is the public function (or the class of an intervention)."""

    name: str
    kind: Kind
    group: str
    question: str
    call: Callable[..., Any] = field(repr=False)
    papers: tuple[str, ...] = ()
    """Titles."""
    needs: Needs = field(default_factory=Needs)
    cost: str = ""
    """Passes per prompt or batch, in words."""
    records: Recorded | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that make this method of a function that answers several questions."""
    expands: Mapping[str, Any] = field(default_factory=dict)
    """Parameter -> the dataclass of settings whose fields are options of the method, or one with the defaults."""
    gives: tuple[str, ...] = ()
    """What recipes can take from its result: ``ranked heads``, ``directions``, ..."""
    reads: str = "prompts"
    """The parameter that takes the prompts."""
    example: str = ""
    """Options of an example that runs, as on the command line."""
    any_adapter: str = ""
    """Why its q is small for an adapter that says nothing too, where it is: what that q is about."""
    check: Callable[[Any, Mapping[str, Any]], None] | None = field(default=None, repr=False)
    """Refuses what can be known to be wrong before a model is loaded, of the rows and of what is said: option -> value,
    prompts as rows, and ``base`` and ``tuned`` by name."""

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """What a user may choose, in the order of the signature."""
        return tuple(
            option
            for option in options_of(self.call, expands=self.expands)
            if option.name not in (*self.fixed, self.reads, *(("limit",) if self.takes_limit else ()))
            and not (option.name in ROLES and not self._is_option(option.name))
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        """The roles among its parameters, in their order."""
        names = ["prompts" if name == self.reads else name for name in inspect.signature(self.call).parameters]
        taken = [name for name in names if name in ROLES and not self._is_option(name)]
        own = {option.name for option in options_of(self.call, expands=self.expands)}
        return (*taken, *(name for name in ("seed", "progress") if name in own and name not in taken))

    @property
    def caution(self) -> str:
        """What its q may not be read as, in a sentence; empty where null adapters come out null."""
        if not self.any_adapter:
            return ""
        return (
            f"Its q asks {self.any_adapter}; it is small with an adapter of random numbers too. Before tuning is "
            "credited with a cell, set the scores among those of null adapters (--null)."
        )

    @property
    def takes_limit(self) -> bool:
        """Whether it runs on a seeded sample of its prompts where ``limit=`` is given."""
        return takes_limit(self.call)

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return summary_of(self.call)

    @property
    def command(self) -> str:
        """How commands and steps call it: ``localize heads``."""
        return f"{VERBS[self.kind]} {self.name}"

    @property
    def module(self) -> str:
        return self.call.__module__

    @property
    def function(self) -> str:
        """The public name in Python."""
        return self.call.__name__

    def option(self, name: str) -> Option | None:
        """The option called ``name``."""
        return next((option for option in self.options if option.name == name), None)

    def _is_option(self, name: str) -> bool:
        """Interventions are values: a field called ``model`` or ``base`` is theirs."""
        return self.kind == "intervention" and name not in ("progress",)


_METHODS: dict[str, Method] = {}

_LAZY = ("interventions", "probes", "workbench")
"""Packages whose functions are imported on first use, so that a file of the same name would come before them."""


def method(  # noqa: PLR0913 (one parameter per thing that is said once)
    name: str,
    *,
    group: str,
    question: str,
    kind: Kind = "probe",
    papers: tuple[str, ...] | str = (),
    needs: Needs | None = None,
    cost: str = "",
    records: Recorded | None = None,
    fixed: Mapping[str, Any] | None = None,
    expands: Mapping[str, Any] | None = None,
    gives: tuple[str, ...] = (),
    reads: str = "prompts",
    example: str = "",
    any_adapter: str = "",
    check: Callable[[Any, Mapping[str, Any]], None] | None = None,
) -> Callable[[Registered], Registered]:
    """Register the decorated function (or class) as method ``name``.

    It is returned as it is, but that a probe's result has every option of the call among the settings of its provenance
    (:meth:`workbench.results.Result.of_call`), so that no probe can forget one, and that a probe of prompts takes
    ``limit``, a seeded sample of them.

    Args:
        name: How commands and experiment files call it; plain text, as are ``group``, ``kind`` and ``question``, so
            that lists of methods can be shown without importing them.
        group: The part of the app and the docs where it stands: weights, activations, heads, experts, ...
        question: What it answers, in a user's words.
        kind: probe, intervention, behaviour or training.
        papers: Titles of the papers that it answers to.
        needs: What it cannot do without.
        cost: Passes per prompt or batch, in words.
        records: What is recorded for it where its first parameter is a recording.
        fixed: Arguments that make this method of a function which answers several questions.
        expands: Parameter -> dataclass whose fields are options of their own, or an instance with the defaults.
        gives: What recipes can take from its result, in plain text: "ranked heads", "directions", ...
        reads: The parameter that takes the prompts, where it is not called so.
        example: Options of an example that runs, as on the command line.
        any_adapter: What its q is about, where that q is small for null adapters too: "whether states moved at all".
        check: Refuses rows and options before a model is loaded; see :class:`Method`.

    Raises:
        ValueError: The name is taken by another function, or a file of ours bears the function's name, by which its
            import would hide the function.
    """

    def register(call: Registered) -> Registered:
        package, _, file = call.__module__.partition(".")
        if file == call.__name__ and package in _LAZY:
            raise ValueError(f"{package}/{file}.py would hide {package}.{file}: give the file another name")
        if kind == "probe" and not takes_limit(call):
            call = with_limit(_with_settings(call, (*ROLES, reads, "device")), reads)
        entry = Method(
            name=name, kind=kind, group=group, question=question, call=call,
            papers=(papers,) if isinstance(papers, str) else papers, needs=needs or Needs(), cost=cost,
            records=records, fixed=fixed or {}, expands=expands or {}, gives=gives, reads=reads, example=example,
            any_adapter=any_adapter, check=check,
        )  # fmt: skip
        holder = _METHODS.get(name)
        if holder is not None and (holder.module, holder.function) != (call.__module__, call.__name__):
            raise ValueError(f"method {name!r} of {call.__module__} is already a method of {holder.module}")
        _METHODS[name] = entry
        return call

    return register


def _with_settings(probe: Registered, roles: tuple[str, ...]) -> Registered:
    """``probe``, whose result is told what the call was given; models, data and device (``roles``) have fields of their
    own."""
    signature = inspect.signature(probe)
    options = [
        name
        for name, parameter in signature.parameters.items()
        if name not in roles and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]

    @functools.wraps(probe)
    def called(*args: Any, **keywords: Any) -> Any:
        result = probe(*args, **keywords)
        if not hasattr(result, "of_call"):
            return result
        call = signature.bind(*args, **keywords)
        call.apply_defaults()
        return result.of_call(probe.__name__, {name: call.arguments[name] for name in options})

    return cast("Registered", called)


def registered(name: str) -> Method | None:
    """The method of that name, if its module has been imported."""
    return _METHODS.get(name)
