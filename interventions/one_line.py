"""Recipes in one line: ``0.5*formal - 0.2*verbose @generated``, with names from a book of recipes.

=============================  =====================================================================
``formal``                     the recipe of that name, as it is
``0.5*formal``                 the same with half the strength
``formal - 0.2*verbose``       both; the second with -0.2 times its strength
``formal @generated``          at these positions instead of its own; the same words as everywhere
``formal @response``           where the answer is written: the last token of the prompt and all new ones
``formal @"all - first"``      positions that hold a space stand in quotes
=============================  =====================================================================

A position belongs to the term in front of it. A name may hold hyphens (``refuse-animals``), so put spaces around minus.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from interventions.base import Intervention
from interventions.recipe import Recipe
from workbench.engine.positions import check_positions
from workbench.errors import UserError, unknown_name

_TOKENS = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)"
    r"|(?P<name>[A-Za-z_](?:[\w.]|-(?=[A-Za-z_]))*)"
    r'|@(?:"(?P<quoted>[^"]*)"|(?P<positions>[^\s"*@]+))'
    r"|(?P<sign>[+-])|(?P<star>\*))"
)
_EXPECTED = {
    "start": "a name or a number",
    "factor": "* and a name",
    "times": "a name",
    "name": "+, - or @positions",
    "placed": "+ or -",
}
_RESPONSE = {"response": "last+generated"}
"""A word of lines alone, and what it is in the language of positions."""
_NEXT = {
    ("start", "number"): "factor",
    ("start", "name"): "name",
    ("factor", "star"): "times",
    ("times", "name"): "name",
    ("name", "sign"): "start",
    ("name", "positions"): "placed",
    ("placed", "sign"): "start",
}


@dataclass
class _Term:
    factor: float = 1.0
    name: str = ""
    column: int = 0
    positions: str | None = None
    positions_column: int = 0


def recipe_from_text(text: str, book: Mapping[str, Recipe | Intervention]) -> Recipe:
    """Read a recipe from one line.

    Args:
        text: Terms such as ``0.5*formal``, joined by + and -, each with ``@positions`` behind it if wanted.
        book: What each name stands for.

    Returns:
        The interventions of all terms in order, with their strengths multiplied.

    Raises:
        UserError: The line breaks the grammar, has a name that the book lacks (the closest is told), unknown
            positions, or positions for an intervention that has none. The error says at which sign.

    Example:
        ``recipe_from_text("0.5*formal - 0.2*verbose @generated", {"formal": Offset(...), "verbose": Offset(...)})``
    """
    whole = Recipe()
    for term in _terms(text):
        if term.name not in book:
            raise UserError(f"Sign {term.column} of {text!r}: {unknown_name('name', term.name, book)}")
        entry = book[term.name]
        part = (Recipe([entry]) if isinstance(entry, Intervention) else entry) * term.factor
        whole = whole + (part if term.positions is None else _placed(part, term, text))
    return whole


def names_in(text: str) -> list[str]:
    """The names that a line is written with, each once. Raises :class:`UserError` where it breaks the grammar."""
    return list(dict.fromkeys(term.name for term in _terms(text)))


def _placed(recipe: Recipe, term: _Term, text: str) -> Recipe:
    """``recipe`` at the term's positions."""
    place = f"Sign {term.positions_column} of {text!r}"
    try:
        check_positions(term.positions)
    except UserError as error:
        near = get_close_matches(str(term.positions), _RESPONSE, n=1)
        raise UserError(f"{place}: {error}{f' Did you mean @{near[0]}?' if near else ''}") from None
    for intervention in recipe:
        if "positions" not in intervention.scopes:
            raise UserError(
                f"{place}: {intervention.kind} of {term.name!r} acts at no positions of its own; leave out the @."
            )
    return Recipe([replace(intervention, positions=term.positions) for intervention in recipe], recipe.made_with)  # type: ignore[type-var]


def _terms(text: str) -> list[_Term]:
    """The line's terms, by the table of what may follow what."""
    terms, state, at = [_Term()], "start", 0
    if leading := re.match(r"\s*([+-])", text):
        terms[-1].factor, at = -1.0 if leading[1] == "-" else 1.0, leading.end()
    while text[at:].strip():
        token = _TOKENS.match(text, at)
        kind = None if token is None else token.lastgroup
        after = _NEXT.get((state, "positions" if kind == "quoted" else str(kind)))
        start = at + len(text[at:]) - len(text[at:].lstrip())
        if token is None or kind is None or after is None:
            raise UserError(f"Sign {start + 1} of {text!r} is {text[start]!r}: expected {_EXPECTED[state]}.")
        _take(terms, kind, token[kind], start + 1)
        state, at = after, token.end()
    if state not in ("name", "placed"):
        raise UserError(f"{text!r} ends too early: expected {_EXPECTED[state]}.")
    return terms


def _take(terms: list[_Term], kind: str, value: str, column: int) -> None:
    """Enter one token into the last term; a sign begins the next."""
    term = terms[-1]
    if kind == "number":
        term.factor *= float(value)
    elif kind == "name":
        term.name, term.column = value, column
    elif kind in ("positions", "quoted"):
        term.positions, term.positions_column = _RESPONSE.get(value, value), column
    elif kind == "sign":
        terms.append(_Term(-1.0 if value == "-" else 1.0))
