"""Names that an experiment file takes, from names that people gave their files."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 60


def plain_names(names: Iterable[str], taken: Iterable[str] = (), otherwise: str = "it") -> dict[str, str]:
    """Name -> letters, digits, - and _ alone, each once and none of ``taken``; ``otherwise`` where no sign is left."""
    used = set(taken)
    by_name: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:LONGEST] or otherwise
        free, number = plain, 2
        while free in used:
            free, number = f"{plain[: LONGEST - 4]}-{number}", number + 1
        used.add(free)
        by_name[name] = free
    return by_name
