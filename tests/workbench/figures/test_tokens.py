"""Coloured tokens: escaped, numbered, with a legend."""

from __future__ import annotations

from workbench.figures.tokens import token_html, visible

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
