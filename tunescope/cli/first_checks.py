"""What can be seen to be wrong with a method's command line before the method, and torch with it, is imported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tunescope.experiments.inputs import PairSpec
from tunescope.experiments.requirements import check_columns, check_pair
from workbench.errors import UserError
from workbench.method_index import Entry
from workbench.prompts import Prompts

HELP = {"-h", "--help"}


def missing_option(entry: Entry, arguments: Sequence[str]) -> str | None:
    """The option that the command cannot do without and was not given; None where nothing is missing.

    Args:
        entry: The method.
        arguments: The words behind its name.
    """
    if HELP & set(arguments) or not {"prompts", "recording"} & set(entry.parameters):
        return None
    return None if _values("--prompts", arguments) else "--prompts"


def check_first(entry: Entry, arguments: Sequence[str]) -> None:
    """Refuse models and prompts that are not there, a dense model where experts are read, and a missing column.

    What this cannot tell is checked again when the command runs.

    Args:
        entry: The method.
        arguments: The words behind its name.

    Raises:
        UserError: Says what is wrong.
    """
    if HELP & set(arguments):
        return
    if models := _before_options(arguments)[:2]:
        check_pair(entry, PairSpec(base=models[0], tuned=models[-1]))
    files = _values("--prompts", arguments)
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"There is no file {file}: check --prompts.")
    if len(files) == 1 and (entry.needs.columns or entry.needs.wants):
        check_columns(entry, Prompts.load(files[0]), _options(arguments))


def _before_options(arguments: Sequence[str]) -> list[str]:
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return list(arguments[:first])


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """What was given for an option, in order: ``--option value`` or ``--option=value``."""
    apart = [value for word, value in pairwise(arguments) if word == option]
    return [*apart, *(word.partition("=")[2] for word in arguments if word.startswith(f"{option}="))]


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """Option -> its value, as written."""
    names = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    written = {name: _values(name, arguments) for name in names}
    return {name.removeprefix("--").replace("-", "_"): values[-1] for name, values in written.items() if values}
