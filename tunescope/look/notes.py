"""What each of the four steps found, as it is kept in the run; reading it imports no model code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workbench.runs import Run

CHANGED, WHERE, TURN, KEEP = STEPS = ("What changed?", "Where?", "Turn it.", "Keep it.")
FILE = "steps.json"
"""In the run: the behaviour, and what each step found."""
State = Literal["not run", "found", "nothing beyond the control"]


def dose_name(candidate: str) -> str:
    """The name of the result that follows a candidate's dose."""
    return f"dose-{candidate}"


@dataclass(frozen=True)
class StepNote:
    """What a step found, in sentences."""

    sentences: tuple[str, ...] = ()
    found: bool = False
    """Something beyond the control."""

    def telling(self) -> tuple[str, ...]:
        """The sentences, the one that says most first: a step goes from what is cheap to what is near an effect."""
        return self.sentences[::-1]

    def with_sentence(self, sentence: str, *, found: bool) -> StepNote:
        """One more finding."""
        return replace(self, sentences=(*self.sentences, sentence), found=self.found or found)


@dataclass(frozen=True)
class LookNotes:
    """The four steps of a run of ``tunescope look``."""

    steps: dict[str, StepNote] = field(default_factory=dict)
    behaviour: str | None = None
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Way to turn the behaviour -> ``side`` and ``scale``."""

    def state(self, step: str) -> State:
        """How far a step is."""
        if step not in self.steps:
            return "not run"
        return "found" if self.steps[step].found else "nothing beyond the control"

    @property
    def has_ended(self) -> bool:
        """Whether every step is done."""
        return set(STEPS) <= set(self.steps)


def plain(notes: LookNotes) -> dict[str, Any]:
    """As the file holds it."""
    steps = {step: asdict(note) for step, note in notes.steps.items()}
    return {"behaviour": notes.behaviour, "steps": steps, "candidates": notes.candidates}


def notes_of(run: Run) -> LookNotes:
    """What the run says of its steps; nothing where its file is missing or damaged, which costs a run of the step."""
    return _read(run.file(FILE))


def _read(file: Path) -> LookNotes:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        steps = {str(step): _note(note) for step, note in content["steps"].items() if step in STEPS}
        behaviour = content.get("behaviour")
        candidates = {str(name): dict(side) for name, side in content.get("candidates", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return LookNotes()
    return LookNotes(steps, behaviour if isinstance(behaviour, str) else None, candidates)


def _note(content: Mapping[str, Any]) -> StepNote:
    return StepNote(tuple(str(sentence) for sentence in content["sentences"]), content["found"] is True)
