"""Tokens coloured by a number: as safe HTML and as a plotly figure; and the shares of shifted tokens."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.intervals import band, whiskers

COLOURS = {"unshifted": "#56B4E9", "marginal": "#E69F00", "shifted": "#D55E00"}
_BOX = "display:inline-block;padding:2px 3px;margin:1px;border-radius:3px;text-align:center;vertical-align:top"
_NUMBER = "display:block;font-size:9px;color:#444"
_LABEL = "padding:4px 8px;width:55%;overflow-wrap:anywhere;color:#111;font-size:13px"
_LONGEST = 60
"""Letters of a token that are shown; its title has all."""
_INVISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"}


def visible(token: str) -> str:
    """The token with spaces, line breaks and control characters made visible."""
    shown = "".join(_INVISIBLE.get(sign, sign if sign.isprintable() else f"\\x{ord(sign):02x}") for sign in token)
    return shown or "∅"


def shortened(text: str, letters: int) -> str:
    """``text``, cut with an ellipsis where it is longer than ``letters``."""
    return text if len(text) <= letters else text[: max(1, letters - 1)] + "…"


def token_html(
    tokens: Sequence[str],
    values: Sequence[float | int],
    *,
    unit: str,
    limit: float | int | None = None,
    notes: Sequence[str] | None = None,
    legend: bool = True,
) -> str:
    """Tokens as boxes, their background from white to orange (blue below zero) and the number below each, with a
    legend that names ``unit``.

    ``limit`` fixes the scale, so that two texts can be compared. The note stands in each box's title. Everything is
    escaped: a token may be ``<script>``.
    """
    bound = limit or max((abs(value) for value in values if math.isfinite(value)), default=1.0) or 1.0
    extra = list(notes) if notes is not None else [""] * len(tokens)
    spans = []
    for token, value, note in zip(tokens, values, extra, strict=True):
        tooltip = html.escape(f"{visible(token)}  {unit} {value:.3g}  {visible_line(note)}".strip(), quote=True)
        line = "<br>" if token.endswith("\n") else ""
        number = f"{value:.2g}" if math.isfinite(value) else "–"
        spans.append(
            f'<span title="{tooltip}" style="background:{_shade(value, bound)};{_BOX}">'
            f'{html.escape(shortened(visible(token), _LONGEST))}<small style="{_NUMBER}">{number}</small></span>{line}'
        )
    ends = [0.0, bound] if all(not value < 0 for value in values) else [-bound, 0.0, bound]
    shades = " … ".join(f'<span style="background:{_shade(end, bound)};{_BOX}">{end:.3g}</span>' for end in ends)
    scale = f'<div style="font-size:smaller;color:#111">{html.escape(unit)}: {shades}</div>' if legend else ""
    body = "".join(spans) or "(no tokens)"
    return f'<div style="font-family:monospace;line-height:1.2;color:#111">{body}</div>{scale}'


def token_lines_html(
    lines: Sequence[tuple[str, Sequence[str], Sequence[float | int], Sequence[str]]],
    *,
    unit: str,
    limit: float | int,
    chosen: int | None = None,
    height: int = 460,
) -> str:
    """Many texts below each other on one scale, in a box that scrolls beyond ``height`` pixels.

    ``lines``: what stands before it, tokens, values, notes; line ``chosen`` is framed. Everything is escaped.
    """
    rows = []
    for number, (label, tokens, values, notes) in enumerate(lines):
        frame = "outline:2px solid #333;outline-offset:-2px;" if number == chosen else ""
        shown = token_html(tokens, values, unit=unit, limit=limit, notes=notes, legend=False)
        rows.append(
            f'<tr style="{frame}vertical-align:top"><td style="{_LABEL}">{html.escape(visible_line(label))}</td>'
            f'<td style="padding:2px 6px">{shown}</td></tr>'
        )
    legend = token_html([], [], unit=unit, limit=limit).partition("</div>")[2]
    table = f'<table style="border-collapse:collapse;width:100%">{"".join(rows)}</table>'
    box = f'<div style="max-height:{height}px;overflow:auto;border:1px solid #ddd;background:#fff">{table}</div>'
    return f"{legend}{box}"


def escaped(text: str) -> str:
    """``text`` without markup for plotly, which reads ``&lt;`` and ``&amp;`` but shows ``&quot;`` letter by letter."""
    return html.escape(text, quote=False)


def safe(text: str) -> str:
    """A text for a figure: nothing in it is markup, and nothing is invisible."""
    return escaped(visible_line(text))


def visible_line(text: str) -> str:
    """A text on one line: line breaks and control characters made visible, spaces left as they are."""
    return visible(text).replace("·", " ")


def _shade(value: float | int, bound: float | int) -> str:
    if not math.isfinite(value):
        return "#dddddd"
    share = max(-1.0, min(1.0, value / bound))
    end = (213, 94, 0) if share >= 0 else (0, 114, 178)
    red, green, blue = (round(255 + (channel - 255) * abs(share) * 0.75) for channel in end)
    return f"rgb({red},{green},{blue})"


def shift_figure(shares: pd.DataFrame, by_position: pd.DataFrame, tokens: pd.DataFrame) -> go.Figure:
    """Left: shares of unshifted, marginal and shifted tokens per direction, with intervals. Right: the share of
    shifted tokens along the response, its interval and its noise floor.

    ``shares``: direction, kind, share, low, high. ``by_position``: position, score, low, high, control.
    ``tokens`` gives the number of tokens for the title.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, column_widths=[0.45, 0.55], subplot_titles=["all tokens", "along the response"])
    for kind, colour in COLOURS.items():
        part = shares[shares["kind"] == kind]
        figure.add_bar(
            x=[direction.replace(", ", "<br>") for direction in part["direction"]],
            y=part["share"].tolist(),
            error_y=whiskers(part, "share"),
            name=kind,
            marker_color=colour,
        )
    rows = by_position.sort_values("position")
    x = rows["position"].tolist()
    figure.add_scatter(**band(x, rows["low"], rows["high"], "rgba(213,94,0,0.2)", showlegend=False), row=1, col=2)
    figure.add_scatter(
        x=x, y=rows["score"].tolist(), line={"color": COLOURS["shifted"]}, name="shifted, 95 %", mode="lines+markers",
        error_y=whiskers(rows) if len(x) == 1 else None,
        row=1, col=2,
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=rows["control"].tolist(), line={"color": "grey", "dash": "dot"}, name="noise floor",
        mode="lines+markers", marker={"symbol": "x"}, row=1, col=2,
    )  # fmt: skip
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    figure.update_xaxes(
        title_text="token of the response", dtick=1 if len(x) <= 20 else None,
        range=[min(x, default=0) - 0.5, max(x, default=0) + 0.5], row=1, col=2,
    )  # fmt: skip
    prompts = f", n = {tokens['prompt'].nunique()} prompts" if "prompt" in tokens else ""
    figure.update_layout(
        template="plotly_white", title={"text": f"Token shift ({len(tokens)} tokens{prompts})", "font": {"size": 15}},
        legend={"orientation": "h", "y": -0.2}, height=420,
    )  # fmt: skip
    figure.update_yaxes(title_text="share of tokens, 95 % interval", row=1, col=1)
    return figure
