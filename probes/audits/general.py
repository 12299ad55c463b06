"""The shipped questions and texts: many topics, none of which is what a model was tuned for more than another."""

from __future__ import annotations

from importlib.resources import files

from workbench.prompts.collection import Prompts


def general_questions() -> Prompts:
    """Eighty questions of many topics and forms."""
    return Prompts.of(_lines("questions.txt"))


def general_texts() -> Prompts:
    """Forty plain sentences, read as they are and not as a user's turn."""
    return Prompts.of(_lines("texts.txt"), chat=False)


def _lines(name: str) -> list[str]:
    text = files("probes.audits").joinpath(name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
