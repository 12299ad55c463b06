"""A book of named recipes, and lines wherever a recipe is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import interventions as iv
from interventions.exchange.reading import is_line, recipe_name
from tunescope.cli.recipe import app
from tunescope.experiments.inline import RecipeSpec, SavedSpec
from tunescope.experiments.method_run import MethodCall
from workbench.errors import UserError
from workbench.method_index import load_method

FORMAL = iv.Recipe([iv.Offset(1, torch.ones(64))])


def test_a_book_keeps_reads_and_drops(tmp_path: Path) -> None:
    book = iv.RecipeBook(tmp_path / "recipes")
    assert len(book) == 0
    book.keep("formal", FORMAL)
    assert list(book) == ["formal"] and book["formal"] == FORMAL and "formal" in repr(book)
    assert iv.load_recipe("0.5*formal - formal @generated", book) == iv.recipe_from_text(
        "0.5*formal - formal @generated", {"formal": FORMAL}
    )
    with pytest.raises(UserError, match="has a 'formal' already"):
        book.keep("formal", FORMAL)
    with pytest.raises(UserError, match="cannot be a name in a line"):
        book.keep("0.5", FORMAL)
    with pytest.raises(UserError, match="Did you mean 'formal'"):
        iv.load_recipe("fromal", book)
    book.drop("formal")
    with pytest.raises(UserError, match="is empty: keep a recipe in it first"):
        book.drop("formal")


def test_files_stay_files(tmp_path: Path) -> None:
    file = FORMAL.save(tmp_path / "a.safetensors")
    assert iv.load_recipe(file) == FORMAL and recipe_name(file) == "a" and not is_line("missing.safetensors")
    assert recipe_name("0.5*formal - b") == "0.5*formal - b"


def test_the_command_line_and_yaml_take_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FORMAL.save(tmp_path / "given.safetensors")
    runner = CliRunner()
    assert runner.invoke(app, ["keep", "formal", "given.safetensors"]).exit_code == 0
    assert runner.invoke(app, ["keep", "less", "-0.5*formal @generated"]).exit_code == 0
    assert iv.RecipeBook()["less"] == iv.recipe_from_text("-0.5*formal @generated", {"formal": FORMAL})
    assert "No such option" not in runner.invoke(app, ["show", "-0.5*formal", "--json"]).output
    listed = runner.invoke(app, ["book", "--json"])
    assert "formal" in [recipe["name"] for recipe in json.loads(listed.stdout)["recipes"]]
    shown = runner.invoke(app, ["show", "0.5*formal", "--json"])
    assert json.loads(shown.stdout)["content"] == (0.5 * FORMAL).content
    method = load_method("behaviour-diff")
    call = MethodCall(method, "base", "tuned", {"recipe": ["0.5*formal", "given.safetensors"]}).experiment()
    assert call["recipes"] == {"0-5-formal": {"line": "0.5*formal"}, "given": {"file": "given.safetensors"}}
    assert runner.invoke(app, ["drop", "formal"]).exit_code == 0
    assert RecipeSpec.model_validate("0.5*formal").line == "0.5*formal"
    assert SavedSpec(line="0.5*formal").file is None
    with pytest.raises(ValueError, match="give file"):
        SavedSpec()
