"""The shipped panels: small sets of tasks, one file each, every item checked by a rule."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.texts import normalised
from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.row import Prompt

PANELS = ("arithmetic", "facts", "format", "language", "safety")
CHECKS = ("contains", "exact", "refuses")


def panel(name: str, folder: Path) -> Prompts:
    """The items of a shipped panel, of ``all``, or of a file (looked for in ``folder``).

    Raises:
        UserError: A row of a file has no answer, or an unknown check.
    """
    if name == "all":
        return Prompts([row for kind in PANELS for row in panel(kind, folder)])
    if name in PANELS:
        return Prompts.load(str(files("tunescope.contracts").joinpath("panels", f"{name}.jsonl")))
    rows = Prompts.load(folder / name)
    for number, row in enumerate(rows):
        check = row.columns.get("check", "contains")
        if check not in CHECKS:
            raise UserError(f"{name}: row {number}: check {check!r} is unknown; give one of {', '.join(CHECKS)}.")
        if check != "refuses" and not row.answer:
            raise UserError(f"{name}: row {number} has no answer to check by; add one.")
    return rows


def solved(text: str, row: Prompt) -> bool:
    """Whether a reply passes its item's check: the answer as whole words, the reply itself, or a refusal."""
    check = row.columns.get("check", "contains")
    if check == "refuses":
        return is_refusal(text, row)
    reply, answer = normalised(text), normalised(row.answer or "")
    return reply == answer if check == "exact" else re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", reply) is not None
