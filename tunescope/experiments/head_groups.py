"""Heads and places as they are written on the command line."""

from __future__ import annotations


def parts(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def place(text: str) -> int | str:
    """A position: a number, or a name."""
    try:
        return int(text)
    except ValueError:
        return text.strip()


def heads_by_place(text: str) -> dict[int | str, list[str]]:
    """``last=L1H2,L0H1;box=L1H0`` as place -> labels; labels alone stand everywhere."""
    groups = [part.strip() for part in text.split(";") if part.strip()]
    if len(groups) > 1 and any("=" not in part for part in groups):
        raise ValueError("Give every group its place, as in last=L1H0,L1H1;-2=L0H0.")
    split = [part.partition("=") if "=" in part else ("all", "=", part) for part in groups]
    return {place(where): parts(labels) for where, _, labels in split}
