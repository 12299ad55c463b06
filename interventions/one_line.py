"""Recipes in one line: ``0.5*formal - 0.2*verbose @generated``, with names from a book of recipes.

=============================  =====================================================================
``formal``                     the recipe of that name, as it is
``0.5*formal``                 the same with half the strength
``formal - 0.2*verbose``       both; the second with -0.2 times its strength
``formal @generated``          at these positions instead of its own; the same words as everywhere
``formal @response``           where the answer is written: the last token of the prompt and all new ones
``formal @"all - first"``      positions that hold a space stand in quotes
``formal at L12``              at this layer instead of its own; ``at L10-L14``: at each of these
``ablate formal``              its directions taken out, where it would add them; ``0.5*ablate``: half
``formal when animals``        only where the gate of the recipe ``animals`` is open
=============================  =====================================================================

What stands behind a name belongs to that term, each at most once, in any order. A name may hold hyphens
(``refuse-animals``), so put spaces around minus; ``at``, ``when`` and ``ablate`` are no names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from interventions.base import Intervention, SiteIntervention
from interventions.concept_ablation import ConceptAblation
from interventions.gate import Gate
from interventions.offset import Offset
from interventions.recipe import Recipe
from workbench.engine.positions import check_positions
from workbench.errors import UserError, unknown_name

KEYWORDS = ("at", "when", "ablate")
"""Words of the grammar, which a book takes for no name."""
_TOKENS = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)"
    r"|(?P<ablate>ablate)(?![\w.-])"
    r"|at\s+(?P<layers>L\d+(?:-L\d+)?)(?![\w.])"
    r"|when\s+(?P<gate>[A-Za-z_](?:[\w.]|-(?=[A-Za-z_]))*)"
    r"|(?!(?:at|when)(?![\w.-]))(?P<name>[A-Za-z_](?:[\w.]|-(?=[A-Za-z_]))*)"
    r'|@(?:"(?P<quoted>[^"]*)"|(?P<positions>[^\s"*@]+))'
    r"|(?P<sign>[+-])|(?P<star>\*))"
)
_EXPECTED = {
    "start": "a name or a number",
    "factor": "* and a name",
    "times": "a name",
    "verb": "a name",
}
_BEHIND = {"positions": "@positions", "layers": "at L12", "gate": "when and a name"}
"""What may stand behind a name, and what an error calls it."""
_RESPONSE = {"response": "last+generated"}
"""A word of lines alone, and what it is in the language of positions."""
_NEXT = {
    ("start", "number"): "factor",
    ("start", "name"): "name",
    ("start", "ablate"): "verb",
    ("factor", "star"): "times",
    ("times", "name"): "name",
    ("times", "ablate"): "verb",
    ("verb", "name"): "name",
    ("name", "sign"): "start",
    ("name", "positions"): "name",
    ("name", "layers"): "name",
    ("name", "gate"): "name",
}


@dataclass
class _Term:
    factor: float = 1.0
    name: str = ""
    column: int = 0
    ablated: int = 0
    """The column of the word; 0: it is not there."""
    positions: str | None = None
    layers: str | None = None
    gate: str | None = None
    columns: dict[str, int] = field(default_factory=dict)
    """Where what stands behind the name begins."""


def recipe_from_text(text: str, book: Mapping[str, Recipe | Intervention]) -> Recipe:
    """Read a recipe from one line.

    Args:
        text: Terms such as ``0.5*formal``, joined by + and -, each with ``@positions`` behind it if wanted.
        book: What each name stands for.

    Returns:
        The interventions of all terms in order, with their strengths multiplied.

    Raises:
        UserError: The line breaks the grammar, has a name that the book lacks (the closest is told), unknown
            positions, or asks an intervention for what it has not (positions, a layer, directions, a gate). The error
            says at which sign.

    Example:
        ``recipe_from_text("0.5*formal - 0.2*verbose @generated", {"formal": Offset(...), "verbose": Offset(...)})``
    """
    whole = Recipe()
    for term in _terms(text):
        whole = whole + _Reading(text, book, term).recipe()
    return whole


def names_in(text: str) -> list[str]:
    """The names that a line is written with, each once. Raises :class:`UserError` where it breaks the grammar."""
    return list(dict.fromkeys(name for term in _terms(text) for name in (term.name, term.gate) if name))


@dataclass(frozen=True)
class _Reading:
    """One term of a line, read with the book."""

    text: str
    book: Mapping[str, Recipe | Intervention]
    term: _Term

    def recipe(self) -> Recipe:
        """The term's interventions, with everything that stands around its name."""
        term = self.term
        part = self._entry(term.name, term.column)
        if term.ablated:
            if term.factor < 0:
                raise UserError(f"{self._sign(term.ablated)}: what is ablated is taken out already; write + for -.")
            part = Recipe([self._ablation(step) for step in part], part.made_with)
        part = part * term.factor
        if term.layers is not None:
            part = self._at_layers(part, term.layers)
        if term.positions is not None:
            part = self._at_positions(part, term.positions)
        return part if term.gate is None else self._gated(part, term.gate)

    def _entry(self, name: str, column: int) -> Recipe:
        if name not in self.book:
            raise UserError(f"{self._sign(column)}: {unknown_name('name', name, self.book)}")
        entry = self.book[name]
        return Recipe([entry]) if isinstance(entry, Intervention) else entry

    def _ablation(self, step: Intervention) -> ConceptAblation:
        """What takes out the direction that ``step`` adds; an ablation stays what it is."""
        if isinstance(step, ConceptAblation):
            return step
        if not isinstance(step, Offset):
            raise UserError(
                f"{self._sign(self.term.ablated)}: {step.kind} of {self.term.name!r} adds no direction that could be "
                "ablated; an Offset does."
            )
        return ConceptAblation(step.layer, step.vector, site=step.site, positions=step.positions, when=step.when)

    def _at_layers(self, part: Recipe, layers: str) -> Recipe:
        first, _, last = layers.replace("L", "").partition("-")
        numbers = range(int(first), int(last or first) + 1)
        sign = self._sign(self.term.columns["layers"])
        if not numbers:
            raise UserError(f"{sign}: {layers} holds no layer; the lower number comes first.")
        for step in part:
            if not hasattr(step, "layer"):
                raise UserError(f"{sign}: {step.kind} of {self.term.name!r} acts at no layer of its own; leave out at.")
        moved = [replace(step, layer=number) for step in part for number in numbers]  # type: ignore[type-var]
        return Recipe(moved, part.made_with)

    def _at_positions(self, part: Recipe, positions: str) -> Recipe:
        sign = self._sign(self.term.columns["positions"])
        try:
            check_positions(positions)
        except UserError as error:
            near = get_close_matches(positions, _RESPONSE, n=1)
            raise UserError(f"{sign}: {error}{f' Did you mean @{near[0]}?' if near else ''}") from None
        for step in part:
            if "positions" not in step.scopes:
                raise UserError(
                    f"{sign}: {step.kind} of {self.term.name!r} acts at no positions of its own; leave out the @."
                )
        return Recipe([replace(step, positions=positions) for step in part], part.made_with)  # type: ignore[type-var]

    def _gated(self, part: Recipe, name: str) -> Recipe:
        column = self.term.columns["gate"]
        gates = {gate for step in self._entry(name, column) if (gate := _gate_of(step)) is not None}
        if len(gates) != 1:
            raise UserError(
                f"{self._sign(column)}: {name!r} has {len(gates) or 'no'} gate{'s' * (len(gates) > 1)}: behind when "
                "stands a recipe whose interventions have one gate (keep one with probes.fit_gate(...).recipe())."
            )
        for step in part:
            if not isinstance(step, SiteIntervention):
                raise UserError(
                    f"{self._sign(column)}: {step.kind} of {self.term.name!r} takes no gate; leave out when."
                )
        (gate,) = gates
        return Recipe([replace(step, when=gate) for step in part], part.made_with)  # type: ignore[type-var]

    def _sign(self, column: int) -> str:
        return f"Sign {column} of {self.text!r}"


def _gate_of(step: Intervention) -> Gate | None:
    return step.when if isinstance(step, SiteIntervention) else None


def _terms(text: str) -> list[_Term]:
    """The line's terms, by the table of what may follow what."""
    terms, state, at = [_Term()], "start", 0
    if leading := re.match(r"\s*([+-])", text):
        terms[-1].factor, at = -1.0 if leading[1] == "-" else 1.0, leading.end()
    while text[at:].strip():
        token = _TOKENS.match(text, at)
        kind = "" if token is None else str(token.lastgroup).replace("quoted", "positions")
        after = _NEXT.get((state, kind))
        start = at + len(text[at:]) - len(text[at:].lstrip())
        if token is None or after is None or kind in terms[-1].columns:
            raise UserError(f"Sign {start + 1} of {text!r} is {text[start]!r}: expected {_expected(state, terms[-1])}.")
        column = token.start("gate") if kind == "gate" else start
        _take(terms, kind, token[str(token.lastgroup)], column + 1)
        state, at = after, token.end()
    if state != "name":
        raise UserError(f"{text!r} ends too early: expected {_EXPECTED[state]}.")
    return terms


def _expected(state: str, term: _Term) -> str:
    """What may come next; behind a name what is not there yet."""
    if state != "name":
        return _EXPECTED[state]
    *others, last = ["+", "-", *(said for kind, said in _BEHIND.items() if kind not in term.columns)]
    return f"{', '.join(others)} or {last}"


def _take(terms: list[_Term], kind: str, value: str, column: int) -> None:
    """Enter one token into the last term; a sign begins the next."""
    term = terms[-1]
    if kind == "number":
        term.factor *= float(value)
    elif kind == "name":
        term.name, term.column = value, column
    elif kind == "ablate":
        term.ablated = column
    elif kind in _BEHIND:
        setattr(term, kind, _RESPONSE.get(value, value) if kind == "positions" else value)
        term.columns[kind] = column
    elif kind == "sign":
        terms.append(_Term(-1.0 if value == "-" else 1.0))
