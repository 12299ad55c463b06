"""All cases of the invariants test: those of the zoo, and those that an intervention's own test file says.

A file in tests/interventions that defines ``INVARIANT_CASES: dict[str, Case]`` at its top level takes part.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from tests.interventions.zoo import CASES, Case


def registered_cases() -> dict[str, Case]:
    """Name -> case. Raises ValueError where two files give one name."""
    found = dict(CASES)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path == Path(__file__) or not re.search(r"^INVARIANT_CASES\b", path.read_text(), re.MULTILINE):
            continue
        parts = path.relative_to(Path(__file__).parents[2]).with_suffix("").parts
        for name, case in import_module(".".join(parts)).INVARIANT_CASES.items():
            if name in found:
                raise ValueError(f"{path} gives the case {name!r} that is there already")
            found[name] = case
    return found
