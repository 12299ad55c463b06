"""Tables as CSV that a spreadsheet opens as data: no cell is a formula."""

from __future__ import annotations

from typing import Any

import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(table: pd.DataFrame) -> str:
    """``table`` as CSV without its index.

    Text that a spreadsheet would run (it begins with ``=``, ``+``, ``-``, ``@`` or a tab) gets an apostrophe in front,
    in cells and in names of columns; numbers stay as they are.
    """
    plain = table.rename(columns=_as_data)
    for place, kind in enumerate(plain.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            plain.isetitem(place, [_as_data(value) for value in plain.iloc[:, place]])
    return plain.to_csv(index=False)


def _as_data(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
