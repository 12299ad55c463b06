"""``limit=`` of every probe that reads prompts: it runs on a seeded sample of them, and its result says so."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.errors import UserError
from workbench.method_options import settings_class

if TYPE_CHECKING:
    from workbench.prompts.collection import Prompts

Call = TypeVar("Call", bound=Callable[..., Any])

LIMIT = inspect.Parameter("limit", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="int | None")
HELP = "limit: Run on a seeded sample of so many prompts (``seed`` draws it), as ``--limit`` does; None: on all."


def takes_limit(call: Callable[..., Any]) -> bool:
    """Whether ``limit=`` of a function is the one that is given to it here."""
    return hasattr(call, "limited_prompts")


def with_limit(call: Call, prompts: str) -> Call:
    """``call`` with an option ``limit``: a sample of its prompts, drawn with its seed.

    Args:
        call: A function with a parameter that takes prompts.
        prompts: The name of that parameter.

    Returns:
        A function that passes everything else on; ``call`` itself where it has no such parameter, an option ``limit``
        of its own, or one from here already. The result's provenance holds ``limit`` and, as
        ``sampled_from``, the hash of all prompts, beside that of the sample.

    Example:
        ``probes.patching(pair, prompts, "heads", limit=60)``
    """
    signature = inspect.signature(call)
    if takes_limit(call) or prompts not in signature.parameters or _has_own(call, signature):
        return call

    @functools.wraps(call)
    def limited(*arguments: Any, limit: int | None = None, **options: Any) -> Any:
        if limit is None:
            return call(*arguments, **options)
        bound = signature.bind(*arguments, **options)
        rows = _all_prompts(bound.arguments.get(prompts), limit)
        picked = rows.sample_numbers(limit, seed=_seed(bound)).tolist()
        bound.arguments[prompts] = rows[picked]
        sampled = partial(_sampled, picked=picked, among=len(rows))
        return _told(call(*bound.args, **sampled(bound.kwargs)), limit, rows)

    limited.limited_prompts = prompts  # type: ignore[attr-defined]
    limited.__signature__ = _with_parameter(signature)  # type: ignore[attr-defined]
    limited.__doc__ = documented(call.__doc__)
    return limited  # type: ignore[return-value]


PER_PROMPT = ("labels", "groups", "responses", "base_prompts")
"""Options that hold one value per prompt where a list is given: the sample's are taken."""


def _sampled(options: dict[str, Any], picked: list[int], among: int) -> dict[str, Any]:
    lists = {
        name: value
        for name, value in options.items()
        if name in PER_PROMPT and isinstance(value, Sequence) and not isinstance(value, str) and len(value) == among
    }  # fmt: skip
    return options | {name: [value[number] for number in picked] for name, value in lists.items()}


def _has_own(call: Callable[..., Any], signature: inspect.Signature) -> bool:
    """Whether ``limit`` is an option of its own already, which may mean something else."""
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    settings = settings_class(call) if takes_more else None
    fields = {field.name for field in dataclasses.fields(settings)} if settings is not None else set()
    return "limit" in signature.parameters or "limit" in fields


def _all_prompts(prompts: Any, limit: int) -> Prompts:
    from workbench.prompts.collection import Prompts

    if prompts is None:
        raise UserError(f"limit={limit} draws a sample of prompts and none were given: give prompts, or no limit.")
    rows = Prompts.of(prompts)
    if limit > len(rows):
        raise UserError(f"limit={limit} is more than the {len(rows)} prompts there are: leave it out to read them all.")
    return rows


def _seed(bound: inspect.BoundArguments) -> int:
    """The seed of a call, also where it is an option among ``**options``."""
    more = [name for name, parameter in bound.signature.parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    options = bound.arguments | (bound.arguments.get(more[0], {}) if more else {})
    seed = options.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _told(result: Any, limit: int, rows: Prompts) -> Any:
    """The result, whose provenance says that its prompts are a sample, and of which."""
    if not hasattr(result, "provenance"):
        return result
    settings = {**result.provenance.settings, "limit": limit, "sampled_from": rows.hash}
    return dataclasses.replace(result, provenance=dataclasses.replace(result.provenance, settings=settings))


def _with_parameter(signature: inspect.Signature) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    at = next((n for n, parameter in enumerate(parameters) if parameter.kind is parameter.VAR_KEYWORD), len(parameters))
    return signature.replace(parameters=[*parameters[:at], LIMIT, *parameters[at:]])


def documented(text: str | None) -> str | None:
    """A docstring whose ``Args:`` end with the line about ``limit``."""
    if text is None:
        return None
    arguments = re.search(r"^( *)Args:\n((?:\1 +\S.*\n|\s*\n(?=\1 +\S))+)", text, re.MULTILINE)
    if arguments is None:
        return f"{text.rstrip()}\n\n    Args:\n        {HELP}\n    "
    indent = re.match(r" *", arguments.group(2))
    line = f"{indent.group() if indent else ''}{HELP}\n"
    return text[: arguments.end()] + line + text[arguments.end() :]
