"""What commands print: a table on a terminal or JSON alone on stdout, with nothing a model wrote obeyed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from workbench.jsonable import jsonable

if TYPE_CHECKING:
    from workbench.progress import Progress

# Marks that turn the reading direction can show a text as another one.
_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
_PIPE_WIDTH = 200
"""Columns of a table that goes to a file or another program."""


def emit(payload: Any, as_json: bool, table: Any = None, *, title: str | None = None) -> None:
    """Print ``payload`` as JSON, or ``table`` for a person (without one, the payload's own keys and values).

    ``table`` is a DataFrame or a list of dicts with the same keys.
    """
    if as_json:
        typer.echo(json.dumps(jsonable(payload), ensure_ascii=True, indent=2))
        return
    rows = _rows(table if table is not None else _as_lines(payload))
    _print_table(rows, title, header=table is not None)


def say_differences(sentences: Iterable[str]) -> None:
    """Print on stderr what differs between two models beside their weights."""
    for sentence in sentences:
        typer.echo(plain(sentence), err=True)


def command_name() -> str:
    """How this person calls ``tunescope``: by name where the shell finds it, else by the path of this very program, as
    after ``make demo``, whose environment nobody has activated."""
    own = Path(sys.argv[0])
    if shutil.which("tunescope") is not None or own.name != "tunescope":
        return "tunescope"
    relative = os.path.relpath(own)
    return str(own) if relative.startswith("..") else relative


def plain(text: str) -> str:
    """``text`` on one line with control characters written out, so that a terminal shows them and obeys
    none."""
    return "".join(_written_out(sign) for sign in text)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr where stderr is a terminal; a line a minute elsewhere."""
    from workbench.progress import LineProgress, RichProgress

    if not sys.stderr.isatty():
        yield LineProgress()
        return
    with RichProgress() as bar:
        yield bar


def _written_out(sign: str) -> str:
    if unicodedata.category(sign) not in ("Cc", "Cs", "Zl", "Zp") and ord(sign) not in _TURNING:
        return sign
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


def _print_table(rows: list[dict[str, Any]], title: str | None, *, header: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from tunescope.cli.fitting import left_out, texts_of

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
    filled = [name for name in (rows[0] if rows else {}) if any(row[name] is not None for row in rows)]
    columns = {name: [plain(name), *(_cell(row[name]) for row in rows)] for name in filled}
    without = left_out(columns, console.width) if header else []
    left = {name: cells for name, cells in columns.items() if name not in without}
    folded = texts_of(left) | set(list(left)[:1]) if header else set(left)  # the first stays, even folded
    shown = RichTable(show_header=header, box=box.SIMPLE)
    for name, cells in left.items():
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        shown.add_column(
            Text(cells[0]), justify="right" if numeric else "left", overflow="fold", no_wrap=name not in folded
        )
    for row in list(zip(*left.values(), strict=True))[1:]:
        shown.add_row(*map(Text, row))
    if title is not None:  # not the table's own, which would be as narrow as its columns
        console.print(Text(plain(title)))
    if rows:
        console.print(shown)
    elif title is None:
        console.print(Text("Nothing to show."))
    if without:
        console.print(Text(f"Beside these, with --json: {', '.join(map(plain, without))}"))


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | dict():
            return plain(json.dumps(value, ensure_ascii=False))
    return plain(str(value))


def _rows(table: Any) -> list[dict[str, Any]]:
    rows = jsonable(table)
    return [{str(name): row.get(name) for name in rows[0]} for row in rows] if rows else []


def _as_lines(payload: Any) -> list[dict[str, Any]]:
    content = jsonable(payload)
    if not isinstance(content, Mapping):
        return [{"value": content}]
    return [{"name": name, "value": value} for name, value in content.items()]
