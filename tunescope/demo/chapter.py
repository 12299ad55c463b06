"""What a chapter of the demo leaves behind: tables, figures, recipes, and what of the truth it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Settings:
    """How much is measured; the defaults keep the whole demo under a minute on two cores."""

    seed: int = 0
    draws: int = 10
    """Random draws of every control."""
    pairs: int = 60
    """Pairs of prompts for the knob."""
    steps: int = 200
    """Training steps of the knob's direction, per candidate layer."""
    heads: int = 40
    """Prompts for patching."""
    epochs: int = 5
    """Epochs of the graft's mask."""


@dataclass(frozen=True)
class Section:
    """One part of the report: paragraphs, then tables and figures by name."""

    title: str
    text: str
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chapter:
    """What was measured on one organism."""

    organism: str
    models: dict[str, Any]
    """Role -> identity."""
    sections: list[Section]
    behaviour: pd.DataFrame
    """One line per behaviour and recipe: see :func:`tunescope.demo.comparing.compare`."""
    truth: pd.DataFrame
    """organism, question, planted, found, score, chance."""
    recipes: dict[str, tuple[Any, Any]]
    """Name -> (recipe, the model it was made on)."""
    results: dict[str, Any] = field(default_factory=dict)
    """Name -> probe result, each kept whole in the run."""
    prompts: list[dict[str, Any]] = field(default_factory=list)
    """Rows that the run keeps, for looking at one at a time."""
    experiment: dict[str, Any] = field(default_factory=dict)
    """What makes the results again: see :mod:`tunescope.demo.as_experiment`."""


def titled(figure: Any, title: str, y: str | None = None) -> Any:
    """The figure under a title that says what it shows here, and where given what is on its vertical axis."""
    figure.update_layout(title={"text": title})
    if y is not None:
        figure.update_yaxes(title={"text": y})
    return figure


def verdict(
    organism: str, question: str, planted: str, found: str, score: float, unit: str, chance: float
) -> dict[str, Any]:
    """One line of the truth table; ``chance`` is what a random answer scores."""
    return {
        "organism": organism, "question": question, "planted": planted, "found": found, "score": score,
        "what the score is": unit, "chance": chance,
    }  # fmt: skip
