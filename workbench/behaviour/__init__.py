"""What a model does, in numbers per prompt: base, tuned, and tuned under a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.behaviour.diff import BehaviourDiff as BehaviourDiff
    from workbench.behaviour.diff import behaviour_diff as behaviour_diff
    from workbench.behaviour.scores import METRICS as METRICS
    from workbench.behaviour.scores import score_answers as score_answers

__all__ = ["METRICS", "BehaviourDiff", "behaviour_diff", "score_answers"]

__getattr__ = lazy(
    __name__,
    {"METRICS": "scores", "score_answers": "scores", "BehaviourDiff": "diff", "behaviour_diff": "diff"},
)
