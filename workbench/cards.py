"""How objects show themselves in a notebook: a title, a sentence or two, facts and a short table, all escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 160
"""A text in a table is cut after so many characters."""


def card(
    title: str,
    facts: Mapping[str, Any] | None = None,
    table: pd.DataFrame | None = None,
    notes: Iterable[str] = (),
) -> str:
    """HTML of an object. Everything given is text: nothing in it is read as markup."""
    parts = [f"<h4>{escape(visible(title))}</h4>", *(f"<p>{escape(visible(note))}</p>" for note in notes)]
    if facts:
        rows = [f"<th>{escape(visible(name))}</th><td>{escape(printable(value))}</td>" for name, value in facts.items()]
        lines = "".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(f'<table border="0" class="dataframe"><tbody>{lines}</tbody></table>')
    if table is not None and len(table.columns):
        parts.append(_table(table))
    return "".join(parts)


def counted(number: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def printable(value: Any, longest: int = LONGEST) -> str:
    """``value`` as text on a line, cut after ``longest`` characters."""
    text = str(value)
    return visible(text if len(text) <= longest else text[: longest - 1] + "…")


def visible(text: str, keep: str = "") -> str:
    """``text`` with its control characters (an escape code, a line break) written out, but for those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in keep else repr(sign)[1:-1] for sign in text)


def columns(names: Sequence[str], sides: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """A table with one line per name and one column per side."""
    import pandas as pd

    return pd.DataFrame({"": list(names), **{side: list(values) for side, values in sides.items()}})


def _table(table: pd.DataFrame) -> str:
    text = table.map(_cell)
    return text.to_html(escape=True, index=False, border=0, na_rep="", float_format="{:.4g}".format)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return printable(value) if isinstance(value, str | list | tuple | dict) else value
