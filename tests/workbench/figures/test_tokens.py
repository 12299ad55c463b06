"""Coloured tokens: escaped, numbered, with a legend."""

from __future__ import annotations

import json

from workbench.figures.tokens import token_figure, token_html, visible

EVIL = ["<script>alert(1)</script>", ' "onload="x', "\n", "", "\x1b[31m"]


def test_nothing_a_token_says_becomes_markup() -> None:
    shown = token_html(EVIL, [0.0, 1.0, -2.0, float("nan"), 0.5], unit="KL (nats)")
    assert "<script>" not in shown and '"onload' not in shown and "\x1b" not in shown
    assert (
        shown.count("<span") == len(EVIL) + 3
        and shown.count("<small") == len(EVIL)
        and "KL (nats)" in shown
        and "<br>" in shown
    )


def test_the_unseen_is_made_visible() -> None:
    assert visible(" a\n") == "·a↵" and visible("") == "∅" and visible("\x1b") == "\\x1b"


def test_the_figure_wraps_and_keeps_the_numbers() -> None:
    figure = token_figure(["a"] * 5 + ["<b>"], [0, 1, 2, 3, 4, -1], unit="rank", width=4)
    heat = json.loads(figure.to_json())["data"][0]
    assert [len(row) for row in heat["text"]] == [4, 4] and heat["text"][1][1] == "&lt;b&gt;"
    assert heat["zmin"] == -heat["zmax"] and heat["z"][1][0] == 4.0
