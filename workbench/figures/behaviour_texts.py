"""Generated texts side by side, with the token where each leaves the base's text marked; everything is escaped."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

ROWS = 20
"""Longer tables are cut, and say so."""
LONGEST = 600
"""Signs of a text that are shown."""
WIDTH = 120
"""Signs that fit beside each other in a figure, over all columns; longer words are broken."""
_MARK = "#D55E00"
_NARROW = '<td style="white-space:nowrap">'


def shown(text: str) -> str:
    """``text`` with control characters written out, cut to a length that can be read; line breaks stay."""
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in cut
    )


def texts_html(texts: pd.DataFrame, *, against: str = "base", rows: int = ROWS) -> str:
    """One line per prompt and sample, one column per model; where a text leaves ``against``'s, it is marked.

    ``texts`` is that of a behaviour diff: prompt, asked, sample, model, text, ``from_<against>``, ``at_<against>``.
    A text that is the same is grey, so that what differs stands out.
    """
    models = list(dict.fromkeys(texts["model"]))
    head = "".join(f"<th>{escape(shown(str(name)))}</th>" for name in ["prompt", "sample", *models])
    body = []
    groups = list(texts.groupby(["prompt", "sample"], sort=True))
    for (_, sample), group in groups[:rows]:
        by_model = group.set_index("model")
        cells = [escape(shown(str(group["asked"].iloc[0]))), "greedy" if sample == 0 else str(sample)]
        cells += [_marked(by_model.loc[model], against) for model in models]
        prompt, sample_cell, *others = (f"<td>{cell}</td>" for cell in cells)
        body.append(f"<tr>{prompt}{sample_cell.replace('<td>', _NARROW)}{''.join(others)}</tr>")
    more = f"<p>The first {rows} of {len(groups)}.</p>" if len(groups) > rows else ""
    style = "white-space:pre-wrap;overflow-wrap:break-word;text-align:left;vertical-align:top"
    return (
        f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>{more}'
        f"<p>Marked: the word at which a text leaves that of {escape(against)}; grey: the same text.</p>"
    )


def _marked(row: Any, against: str) -> str:
    before, after, differs = _split(row, against)
    if not differs:
        return f'<span style="color:#777">{escape(shown(before))}</span>'
    first, rest = _first_word(after)
    mark = f'<mark style="background:#F0E442;color:#111">{escape(shown(first)) or "∎"}</mark>'
    return f"{escape(shown(before))}{mark}{escape(shown(rest))}"


def _split(row: Any, against: str) -> tuple[str, str, bool]:
    """What the text shares with the other model's, the rest, and whether they differ."""
    text, place = str(row["text"]), row.get(f"at_{against}", math.nan)
    if place is None or pd.isna(place):
        return text, "", False
    return text[: int(place)], text[int(place) :], True


def _first_word(text: str) -> tuple[str, str]:
    """The word that begins with the token that differs, and what follows."""
    end = next((n for n, sign in enumerate(text) if n and sign.isspace() and not text[:n].isspace()), len(text))
    return text[:end], text[end:]


def texts_figure(
    texts: pd.DataFrame, *, against: str = "base", rows: int = ROWS, title: str = "Texts side by side"
) -> go.Figure:
    """The same as a plotly table, for reports and the app; the token that differs is bold and coloured."""
    models = list(dict.fromkeys(texts["model"]))
    groups = list(texts.groupby(["prompt", "sample"], sort=True))
    columns: list[list[str]] = [[] for _ in range(2 + len(models))]
    width = max(12, WIDTH // (1 + len(models)))
    for (_, sample), group in groups[:rows]:
        by_model = group.set_index("model")
        columns[0].append(_wrapped(str(group["asked"].iloc[0]), width))
        columns[1].append("greedy" if sample == 0 else str(sample))
        for column, model in zip(columns[2:], models, strict=True):
            column.append(_cell(by_model.loc[model], against, width))
    names = ["<b>prompt</b>", "<b>sample</b>", *(f"<b>{_plotly(shown(str(name)))}</b>" for name in models)]
    tall = sum(16 + 16 * max(cell.count("<br>") + 1 for cell in row) for row in zip(*columns, strict=True))
    figure = go.Figure(
        go.Table(
            header={"values": names, "align": "left", "fill_color": "#eeeeee"},
            cells={"values": columns, "align": "left", "fill_color": "white", "height": 22},
            columnwidth=[1, 0.3, *[1] * len(models)],
        )
    )
    cut = f" (the first {rows} of {len(groups)})" if len(groups) > rows else ""
    heading = f"{title}{cut}; coloured: the word at which a text leaves that of {_plotly(against)}; grey: the same text"
    figure.update_layout(
        title={"text": heading, "font": {"size": 13}}, height=min(130 + tall, 1600), margin={"l": 10, "r": 10, "b": 10}
    )
    return figure


def _cell(row: Any, against: str, width: int) -> str:
    before, after, differs = _split(row, against)
    if not differs:
        return f'<span style="color:#777777">{_wrapped(before, width)}</span>'
    first, rest = _first_word(after)
    parts = [shown(before), shown(first) or "∎", shown(rest)]
    start, end = len(parts[0]), len(parts[0]) + len(parts[1])
    signs = _lines("".join(parts), width)
    mark = f'<b style="color:{_MARK}">{"".join(signs[start:end])}</b>'
    return f"{''.join(signs[:start])}{mark}{''.join(signs[end:])}"


def _wrapped(text: str, width: int) -> str:
    return "".join(_lines(shown(text), width))


def _lines(text: str, width: int) -> list[str]:
    """Each sign of ``text`` escaped, a line break in place of some spaces and inside words that are too long.

    Plotly's tables wrap at spaces but neither break words nor make room for what they wrapped.
    """
    signs, column, space = [_plotly(sign) for sign in text], 0, -1
    for place, sign in enumerate(text):
        column += 1
        if sign == "\n":
            signs[place], column, space = "<br>", 0, -1
        elif column > width and sign == " ":
            signs[place], column, space = "<br>", 0, -1
        elif column > width and space >= 0:
            signs[space], column, space = "<br>", place - space, -1
        elif column > width:
            signs[place], column = f"<br>{signs[place]}", 1
        elif sign == " ":
            space = place
    return signs


def _plotly(text: str) -> str:
    """Escaped for plotly, which obeys tags and knows no ``&quot;``."""
    return escape(text, quote=False)
