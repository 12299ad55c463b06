"""Whether a CSV file is a table: every column named once, and no row with more fields than the header."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import UserError


def check_csv(path: Path, separator: str) -> None:
    """Raise :class:`UserError` naming the line of the first row that the header does not explain.

    Readers guess at such rows: they take the first fields as an index, and every column moves.
    """
    with path.open(encoding="utf-8-sig", newline="") as file, _long_fields():
        rows = csv.reader(file, delimiter=separator)
        try:
            header = next((row for row in rows if row), [])
            _check_header(path, header)
            for row in rows:
                if len(row) > len(header):
                    raise UserError(
                        f"{path.name}, line {rows.line_num} has {len(row)} fields and the header names {len(header)}: "
                        f'put quotes around a text that holds {separator!r}, as in "Hello, world".'
                    )
        except csv.Error as error:
            raise UserError(f"{path.name}, line {rows.line_num} is not readable CSV ({error}).") from error


def _check_header(path: Path, header: list[str]) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise UserError(f"{path.name} has the column {twice[0]!r} twice: every column needs a name of its own.")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be as long as a prompt may be; the module's own limit is 128 KiB."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
