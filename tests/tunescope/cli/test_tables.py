"""Tables on a terminal: names and numbers whole, the first columns that fit, the others by name; texts in folds, empty
columns not at all."""

from __future__ import annotations

from typing import Any

import pytest

from tunescope.cli.fitting import left_out
from tunescope.cli.output import emit

ROW = {"layer": 0, "module": "self_attn.v_proj", "score": 0.1454321, "name": "layers.0.self_attn.v_proj.weight", "n": 7}


def printed(rows: list[dict[str, Any]], width: int, monkeypatch: Any, capsys: Any) -> list[str]:
    monkeypatch.setattr("tunescope.cli.output._PIPE_WIDTH", width)
    emit(None, False, rows)
    out: str = capsys.readouterr().out
    lines = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    return lines


def test_what_does_not_fit_is_named_and_nothing_is_cut(monkeypatch: Any, capsys: Any) -> None:
    wide = printed([ROW, ROW], 120, monkeypatch, capsys)
    assert wide[0].split() == list(ROW) and len(wide) == 4
    narrow = printed([ROW, ROW], 50, monkeypatch, capsys)
    assert narrow[0].split() == ["layer", "module", "score", "n"]
    assert narrow[2].split() == ["0", "self_attn.v_proj", "0.1454", "7"]
    assert narrow[-1] == "Beside these, with --json: name"


def test_a_finding_keeps_its_interval_control_and_q(monkeypatch: Any, capsys: Any) -> None:
    numbers = {name: 0.1454321 for name in ("score", "low", "high", "control", "q")}
    lines = printed(
        [{"layer": 3, "module": "model.layers.3.self_attn.v_proj.weight", **numbers}], 80, monkeypatch, capsys
    )
    assert lines[0].split() == ["layer", *numbers] and lines[-1] == "Beside these, with --json: module"


def test_names_that_tell_rows_apart_come_before_other_numbers(monkeypatch: Any, capsys: Any) -> None:
    numbers = {name: 0.1454321 for name in ("score", "low", "high", "control", "q", "p", "regret")}
    rows = [{**numbers, "strength": 2.0, "how": how} for how in ("summed", "centred")]
    lines = printed(rows, 60, monkeypatch, capsys)
    assert lines[0].split() == ["score", "low", "high", "control", "q", "how"]


def test_texts_are_folded_beside_whole_numbers(monkeypatch: Any, capsys: Any) -> None:
    """A row's text takes three lines, not one a word, and no number is broken for it."""
    row = {"layer": None, **{name: 0.1454321 for name in "abcdefgh"}, "text": "once upon a time there was a girl " * 2}
    lines = printed([row], 60, monkeypatch, capsys)
    assert lines[0].split() == ["a", "b", "c", "d", "text"] and lines[2].split()[:4] == ["0.1454"] * 4
    assert len(lines) <= 2 + 4 + 1 and lines[-1] == "Beside these, with --json: e, f, g, h"


def test_a_title_is_not_as_narrow_as_its_table(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("tunescope.cli.output._PIPE_WIDTH", 60)
    emit(None, False, [{"n": 7}], title="runs/one: 7 of 7 rows go with the queries, no control")
    assert capsys.readouterr().out.splitlines()[0] == "runs/one: 7 of 7 rows go with the queries, no control"


@pytest.mark.parametrize("width", [1, 10, 30, 200])
def test_the_first_column_stays_and_widths_are_counted_as_shown(width: int) -> None:
    columns = {"a": ["a", "漢字漢字漢字"], "b": ["b", "x"], "a very long name without end": ["n", "1"]}
    found = left_out(columns, width)
    assert "a" not in found
    assert ("b" in found) == (width < 1 + 12 + 3 + 1 + 3)
