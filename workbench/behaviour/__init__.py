"""What a model does, in numbers per prompt: base, tuned, and tuned under a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.behaviour.diff import behaviour_diff as behaviour_diff
    from workbench.behaviour.metrics import METRICS as METRICS
    from workbench.behaviour.options import DiffOptions as DiffOptions
    from workbench.behaviour.result import BehaviourDiff as BehaviourDiff
    from workbench.behaviour.scores import score_answers as score_answers
    from workbench.behaviour.texts import is_refusal as is_refusal

_HOMES = {
    "METRICS": "metrics",
    "BehaviourDiff": "result",
    "DiffOptions": "options",
    "behaviour_diff": "diff",
    "is_refusal": "texts",
    "score_answers": "scores",
}
__all__ = ["METRICS", "BehaviourDiff", "DiffOptions", "behaviour_diff", "is_refusal", "score_answers"]

__getattr__ = lazy(__name__, _HOMES)
