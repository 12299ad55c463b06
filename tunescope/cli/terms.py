"""``tunescope terms``: what the words in tables, maps and reports mean."""

from __future__ import annotations

from typing import Annotated

import typer


def terms(
    word: Annotated[str | None, typer.Argument(help="A column or term, such as q or resid_post; default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Say what the words in tables, maps and reports mean; the app shows the same on hover.

    Example, offline:  tunescope terms control
    """
    from tunescope.cli.output import emit
    from workbench.errors import unknown_name
    from workbench.glossary import COLUMNS, TERMS

    known = {**TERMS, **COLUMNS}
    if word is not None and word not in known:
        raise unknown_name("term", word, known)
    rows = [{"term": term, "meaning": known[term]} for term in sorted(known if word is None else [word], key=str.lower)]
    if as_json:
        emit(rows, as_json=True)
    else:
        emit(None, False, rows, title="Terms")
