"""The shipped corpus: short prompts and passages of many topics and formats, all written for this project."""

from __future__ import annotations

from importlib.resources import files

from workbench.prompts.collection import Prompts


def general_questions() -> Prompts:
    """Eighty questions of many topics and forms: those that an audit asks unless it is given others."""
    return Prompts.of(_lines("questions.txt"))


def general_texts() -> Prompts:
    """Forty plain sentences, read as they are and not as a user's turn."""
    return Prompts.of(_lines("texts.txt"), chat=False)


def general_corpus() -> Prompts:
    """All 410: two hundred prompts as a user's turn, and as many passages of many formats, read as they are.

    For a longer audit: ``probes.audit(pair, questions=rows.filter(lambda row: row.chat is not False))``.
    """
    prompts = Prompts.of([*_lines("questions.txt"), *_lines("more_questions.txt")])
    passages = Prompts.of([*_lines("texts.txt"), *_lines("more_texts.txt")], chat=False)
    return Prompts([*prompts, *passages])


def _lines(name: str) -> list[str]:
    text = files("probes.audits").joinpath(name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
