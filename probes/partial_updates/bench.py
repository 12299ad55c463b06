"""The bench that judges parts of an update: right answers with a part, beside random updates of its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interventions.weightspace.task_vector import TaskVector
from probes.grafting.tasks import Task
from probes.scored import beside_control
from probes.series.answers import Answers
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts


@dataclass
class Bench:
    """Prompts of the task and, where there are any, of what should be retained."""

    answers: Answers
    task: Task
    retain: tuple[Answers, Task] | None
    seed: int

    @classmethod
    def of(cls, base: AdaptedModel, prompts: Prompts, retain: Any, batch_size: int, seed: int) -> Bench:
        """Raises :class:`UserError` for prompts without answers, and for too few of them."""
        answers = Answers.of(base, prompts, batch_size)
        other = None if retain is None else Answers.of(base, Prompts.of(retain), batch_size)
        return cls(answers, answers.task(), None if other is None else (other, other.task()), seed)

    @property
    def passes(self) -> int:
        return self.answers.passes + (0 if self.retain is None else self.retain[0].passes)

    def right(self, vector: TaskVector | None) -> np.ndarray:
        """Row by row, of base + update."""
        return self.answers.outcome(self.task, vector).right.astype(float)

    def retained(self, vector: TaskVector | None) -> float:
        """Share right of the prompts to retain; NaN without any."""
        if self.retain is None:
            return float("nan")
        return self.retain[0].outcome(self.retain[1], vector).accuracy

    def row(
        self, vector: TaskVector | None, controls: Sequence[TaskVector], own: np.ndarray | None = None
    ) -> dict[str, float]:
        """Score with interval, the mean of the controls, ``p`` of the difference, and what is retained with both;
        ``own``: the hits of ``vector`` where they are known."""
        own = self.right(vector) if own is None else own
        random = np.stack([self.right(control) for control in controls]) if controls else own[None]
        clusters = self.task.clusters if self.task.clusters is not None else np.arange(len(own))
        return {
            **beside_control(own, random.mean(0), clusters, seed=self.seed, share=True),
            "retained": self.retained(vector),
            "retained_control": float(np.mean([self.retained(control) for control in controls]))
            if controls
            else np.nan,
            "n": len(own),
        }
