"""``tunescope localize retrieval`` on two hand-built copiers, found on disk: which head copies is known.

The words of a needle stand nowhere else, and a needle begins with the word that ends the template, so a head that finds
that word again copies the needle to its end. The base copies with L1H1, the tuned model with L1H0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probes.needles.heads import RetrievalHeads
from tests.probes.copier import copier
from tunescope.cli.app import app
from workbench import runs
from workbench.errors import UserError
from workbench.organisms.vocabulary import word_tokenizer

CLI = CliRunner()
HAYSTACK = "ant bee . cat dog . eel fox . gnu hen . " * 4
NEEDLES = ("answer zebra hides here .", "answer yak sleeps there .", "answer gull left town .")
TEMPLATE = " question : {question} answer"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("copiers")
    tokenizer = word_tokenizer([HAYSTACK, *NEEDLES, TEMPLATE, "what ?"])
    tokenizer.eos_token = "."  # an answer is a sentence
    for name, head in (("base", 1), ("tuned", 0)):
        copier(len(tokenizer), 96, head).hf.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    (home / "book.txt").write_text(HAYSTACK)
    (home / "needles.jsonl").write_text(
        "\n".join(json.dumps({"question": "what ?", "text": needle}) for needle in NEEDLES)
    )
    return home


def asked(home: Path, *more: str, **files: Path) -> Any:
    named = {"haystack": home / "book.txt", "needles": home / "needles.jsonl", **files}
    options = [part for name, path in named.items() for part in (f"--{name}", str(path))]
    models = [str(home / "base"), str(home / "tuned")]
    return CLI.invoke(app, ["localize", "retrieval", *models, *options, "--device", "cpu", *more])


def _step(out: Path) -> Any:
    return runs.open(out).config["experiment"]["steps"]["retrieval"]


def test_the_copying_head_of_each_model_is_found(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = asked(home, "--lengths", "16,32", "--template", TEMPLATE, "--out", str(out), "--json")
    assert done.exit_code == 0, done.exception
    assert runs.verify(out).ok and _step(out)["template"] == TEMPLATE
    found: Any = RetrievalHeads.load(out / "result.safetensors")
    assert found.kept == {"tuned": (30, 30), "base": (30, 30)} and found.heads() == ["L1H0"]
    table = found.table.set_index(["layer", "head"])
    copied = 4 / 5  # all tokens of the needle but the first, which the prompt holds already
    assert table.loc[(1, 0), ["score", "base", "change"]].tolist() == pytest.approx([copied, 0, copied])
    assert table.loc[(1, 1), ["score", "base", "change"]].tolist() == pytest.approx([0, copied, -copied])
    assert (table.loc[[(0, 0), (0, 1)], ["score", "base"]] == 0).all(axis=None) and (table.control < 0.05).all()
    best = json.loads(done.stdout)["rows"][0]
    assert (best["layer"], best["head"], best["score"]) == (1, 0, pytest.approx(copied))


def test_a_template_that_the_needle_does_not_follow_answers_nothing(home: Path, tmp_path: Path) -> None:
    for more in ([], ["--template", r" {question}\n"]):
        done = asked(home, "--lengths", "16", *more, "--out", str(tmp_path / "run"))
        assert isinstance(done.exception, UserError) and "not measurable" in str(done.exception)
        assert not (tmp_path / "run").exists()


def test_mistakes_are_told_and_nothing_is_written(home: Path, tmp_path: Path) -> None:
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        return tmp_path / name

    good = '{"question": "what ?", "text": "answer zebra hides here ."}\n'
    no_needle = "line 3 is no needle: give an object with question and text"
    cases: list[tuple[dict[str, Path], list[str], str]] = [
        ({}, ["--lengths", "48"], "an answer of 50 would pass the 96 positions of the tuned model"),
        ({}, ["--lengths", "64"], "The haystack has 49 tokens, but a trial asks for 64: give more text"),
        ({"haystack": file("full.txt", HAYSTACK + NEEDLES[1])}, [], "already holds the needle 'answer yak sleeps"),
        ({"haystack": tmp_path / "no.txt"}, [], "There is no file"),
        ({"haystack": file("latin.txt", "caf\xe9 .")}, [], "is not UTF-8 text (byte 3)"),
        ({"needles": tmp_path / "no.jsonl"}, [], "There is no file"),
        ({"needles": file("empty.jsonl", "\n")}, [], "holds no needles"),
        ({"needles": file("broken.jsonl", f'{good}\n{{"question": "what ?"')}, [], no_needle),
        ({"needles": file("nameless.jsonl", f'{good}\n{{"question": "what ?"}}')}, [], no_needle),
        ({"needles": file("number.jsonl", f'{good}\n{{"question": "what ?", "text": 4}}')}, [], no_needle),
        ({"needles": file("list.jsonl", f'{good}\n["what ?", "answer"]')}, [], no_needle),
        ({"needles": file("blank.jsonl", '{"question": "what ?", "text": " "}')}, [], "Needle 0 is empty"),
        ({}, ["--template", " answer"], "The template ' answer' has no place for the question"),
    ]
    for files, more, sentence in cases:
        done = asked(home, "--lengths", "16", "--template", TEMPLATE, *more, "--out", str(tmp_path / "run"), **files)
        assert isinstance(done.exception, UserError), (sentence, done.exception)
        assert sentence in str(done.exception) and "\n" not in str(done.exception)
    for wrong in ("many", "16,", "0", "1.5"):
        assert asked(home, "--lengths", wrong, "--out", str(tmp_path / "run")).exit_code == 2
    assert not (tmp_path / "run").exists()
