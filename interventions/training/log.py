"""What a command or an experiment keeps of a training: its steps as a result, and what it made as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from workbench.results import Provenance, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

RECIPE, LEARNED = "recipe.safetensors", "learned.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingLog(Result):
    """The steps of a training.

    ``table``: one line per step and stage (0, 1, ...): ``step``, ``loss`` in nats, and what else the training reports;
    for a series one line per member. ``outcome``: the numbers and names that the training gives beside its model, such
    as how many entries were trained.
    """

    outcome: dict[str, Any]

    title: ClassVar[str] = "Training"

    @classmethod
    def of(cls, made: Any, provenance: Provenance) -> TrainingLog:
        """From what a training returns."""
        if isinstance(made, Mapping):
            return cls(table=pd.DataFrame({"member": list(made)}), provenance=provenance, outcome={})
        histories = getattr(made, "histories", (getattr(made, "history", ()),))
        lines = [{"stage": stage, **entry} for stage, history in enumerate(histories) for entry in history]
        table = pd.DataFrame(lines, columns=None if lines else ["stage", "step", "loss"])
        numbers = {name: value for name, value in vars(made).items() if isinstance(value, str | int | float)}
        intervals = {name: value._asdict() for name, value in vars(made).items() if hasattr(value, "estimate")}
        return cls(table=table, provenance=provenance, outcome={**numbers, **intervals})

    def figure(self) -> go.Figure:
        """The loss of every step, one line per stage."""
        import plotly.express as px

        if "loss" not in self.table:
            return px.bar(self.table, x="member")
        return px.line(self.table, x="step", y="loss", color="stage", labels={"loss": "loss, nats"})

    def summary(self) -> str:
        """How many steps, the loss of the first and the last, and what else the training says."""
        said = "".join(f"; {name}: {_said(value)}" for name, value in self.outcome.items())
        if "loss" not in self.table or self.table.empty:
            return f"{len(self.table)} members" if "member" in self.table else f"fitted in one go{said}"
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
    elif hasattr(made, "recipe"):
        made.recipe.save(folder / RECIPE)
    elif hasattr(made, "attachment"):
        made.save(folder)
    elif not isinstance(made, Mapping):
        made.save(folder / LEARNED)
