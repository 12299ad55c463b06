"""What a command or an experiment keeps of a training: its steps as a result, and what it made as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from workbench.results import Provenance, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

RECIPE, LEARNED = "recipe.safetensors", "learned.safetensors"
STEPS = "trainer_state.json"
"""Beside a model, the steps of its training, named and laid out as transformers' Trainer does."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingLog(Result):
    """The steps of a training.

    ``table``: one line per step and stage (0, 1, ...): ``step``, ``loss`` in nats, and what else the training reports;
    for a series one line per member, with its steps and the loss of its first and last one. ``outcome``: the numbers
    and names that the training gives beside its model, such as how many entries were trained.
    """

    outcome: dict[str, Any]

    title: ClassVar[str] = "Training"

    @classmethod
    def of(cls, made: Any, provenance: Provenance) -> TrainingLog:
        """From what a training returns."""
        if isinstance(made, Mapping):
            members = [{"member": name, **_ends(Path(folder))} for name, folder in made.items()]
            return cls(table=pd.DataFrame(members), provenance=provenance, outcome={})
        lines = [{"stage": stage, **entry} for stage, history in enumerate(_histories(made)) for entry in history]
        table = pd.DataFrame(lines, columns=None if lines else ["stage", "step", "loss"])
        numbers = {name: value for name, value in vars(made).items() if isinstance(value, str | int | float)}
        intervals = {name: value._asdict() for name, value in vars(made).items() if hasattr(value, "estimate")}
        return cls(table=table, provenance=provenance, outcome={**numbers, **intervals})

    def figure(self) -> go.Figure:
        """The loss of every step, one line per stage."""
        import plotly.express as px

        if "loss" not in self.table:
            return px.bar(self.table, x="member", y="last_loss", labels={"last_loss": "loss of the last step, nats"})
        return px.line(self.table, x="step", y="loss", color="stage", labels={"loss": "loss, nats"})

    def summary(self) -> str:
        """How many steps, the loss of the first and the last, and what else the training says."""
        said = "".join(f"; {name.replace('_', ' ')}: {_said(value)}" for name, value in self.outcome.items())
        if "member" in self.table:
            losses = ", ".join(
                f"{row.member} {row.first_loss:.3g} to {row.last_loss:.3g}" for row in self.table.itertuples()
            )
            return f"{len(self.table)} members; loss of the first and the last step, nats: {losses}"
        if "loss" not in self.table or self.table.empty:
            return f"fitted in one go{said}"
        loss = self.table["loss"]
        return f"{len(loss)} steps, loss {loss.iloc[0]:.3g} to {loss.iloc[-1]:.3g} nats{said}"


def _said(value: Any) -> str:
    """A number or a name, or an interval with its number in front."""
    if not isinstance(value, dict):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{value['estimate']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def save_trained(made: Any, folder: Path, tokenizer: Any) -> None:
    """Write what a training made into ``folder``: a model, an adapter or an attachment, as ``load_pair`` takes it; a
    recipe; or what else was learned. A series is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(made, "model"):
        getattr(made.model, "hf", made.model).eval().save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        save_steps(made, folder)
    elif hasattr(made, "recipe"):
        made.recipe.save(folder / RECIPE)
    elif hasattr(made, "attachment"):
        made.save(folder)
    elif not isinstance(made, Mapping):
        made.save(folder / LEARNED)


def save_steps(made: Any, folder: Path) -> None:
    """Write the steps of a training beside its model, for ``probes.early_signs``; stages count their steps on."""
    log: list[dict[str, float]] = []
    for history in _histories(made):
        before = log[-1]["step"] if log else 0
        log += [{**entry, "step": before + entry["step"]} for entry in history]
    if log:
        (folder / STEPS).write_text(json.dumps({"log_history": log}), encoding="utf-8")


def _ends(folder: Path) -> dict[str, int | float]:
    """How many steps the model in ``folder`` was trained, and the loss of the first and the last."""
    log = json.loads((folder / STEPS).read_text(encoding="utf-8"))["log_history"]
    return {"steps": len(log), "first_loss": log[0]["loss"], "last_loss": log[-1]["loss"]}


def _histories(made: Any) -> tuple[Any, ...]:
    """A history of steps per stage."""
    return tuple(getattr(made, "histories", (getattr(made, "history", ()),)))
