"""The shipped questions of many topics, for a look without prompts of one's own."""

from __future__ import annotations

from importlib.resources import files

from workbench.prompts import Prompts


def general_questions() -> Prompts:
    """Questions of many topics.

    Examples:
        >>> len(general_questions())
        40
    """
    text = files("tunescope.look").joinpath("questions.txt").read_text(encoding="utf-8")
    return Prompts.of([line for line in text.splitlines() if line.strip()])
