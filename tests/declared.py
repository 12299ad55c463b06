"""What a method's own test file says of it for the tests that run over the registry.

A file in ``tests/`` that defines one of these at its top level, as ``NAME: dict[str, str] = {method: text}``, takes
part, so that a new method needs no other test file:

- ``NO_BENCH_CASE``: why the bench of planted truth does not ask a probe of a group that it covers;
- ``NO_PAIR``: why no null adapter can stand in for what a probe reads;
- ``OF_ONE_MODEL``: what the q of a probe is about, where that is not what differs between two models;
- ``EXAMPLE_FOLDER``: in which of the folders of ``tests/tunescope/cli/example_folders.py`` its help's example runs.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

NAMES = ("NO_BENCH_CASE", "NO_PAIR", "OF_ONE_MODEL", "EXAMPLE_FOLDER")


@cache
def declared(name: str) -> dict[str, str]:
    """Method -> what the test files say under ``name``.

    Raises ValueError for a name that is none of :data:`NAMES`, and where two files say it of one method.
    """
    if name not in NAMES:
        raise ValueError(f"{name} is none of {', '.join(NAMES)}")
    root, said = Path(__file__).parent, dict[str, str]()
    for path in sorted(root.rglob("*.py")):
        if re.search(rf"^{name}\b.*= \{{", path.read_text(encoding="utf-8"), re.MULTILINE):
            own = getattr(import_module(".".join(("tests", *path.relative_to(root).with_suffix("").parts))), name)
            if twice := said.keys() & own.keys():
                raise ValueError(f"{path} says {name} of {', '.join(sorted(twice))} once more")
            said |= own
    return said
