"""Answers of several models side by side: the first token that differs is marked, chances under the pointer."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from workbench.figures.tokens import visible

_MARK = "outline:2px solid #D55E00;border-radius:3px"
_BOX = "padding:1px 1px"


def first_difference(one: Sequence[str], other: Sequence[str]) -> int | None:
    """The place of the first token that differs; None where they are the same."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def side_by_side_html(
    answers: Mapping[str, Sequence[str]],
    *,
    log_probs: Mapping[str, Sequence[float]] | None = None,
    reference: str | None = None,
) -> str:
    """One column per model: its answer's tokens, the first that differs from ``reference`` (the first model by
    default) in a frame, each token's probability and log-probability (nats) in its title where given.

    Everything is escaped, spaces and line breaks are made visible.
    """
    base = reference if reference is not None else next(iter(answers), "")
    columns = []
    for name, tokens in answers.items():
        place = None if name == base else first_difference(answers[base], tokens)
        told = "the reference" if name == base else _told(place)
        spans = "".join(_span(tokens, log_probs, name, number, mark=number == place) for number in range(len(tokens)))
        ended = place is not None and place >= len(tokens)
        end = f'<span style="{_MARK}">∎</span>' if ended else ""
        columns.append(
            f'<td style="vertical-align:top;padding:4px 10px;border:1px solid #ddd"><b>{html.escape(name)}</b>'
            f'<div style="font-size:smaller;color:#555">{told}</div>'
            f'<div style="font-family:monospace;line-height:1.6;overflow-wrap:anywhere">{spans}{end}</div></td>'
        )
    return f'<table style="border-collapse:collapse;width:100%;table-layout:fixed"><tr>{"".join(columns)}</tr></table>'


def _told(place: int | None) -> str:
    return "the same as the reference" if place is None else f"differs from token {place + 1}"


def _span(
    tokens: Sequence[str], log_probs: Mapping[str, Sequence[float]] | None, name: str, number: int, *, mark: bool
) -> str:
    token = tokens[number]
    title = f"token {number + 1}: {visible(token)}"
    if log_probs is not None and name in log_probs:
        value = log_probs[name][number]
        title += f", probability {math.exp(value):.3f} (log {value:.2f} nats)"
    line = "<br>" if token.endswith("\n") else ""
    style = f"{_BOX};{_MARK}" if mark else _BOX
    return f'<span title="{html.escape(title, quote=True)}" style="{style}">{html.escape(visible(token))}</span>{line}'
