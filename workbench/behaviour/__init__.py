"""What a model does, in numbers per prompt: base, tuned, and tuned under a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.behaviour.critique import self_critique as self_critique
    from workbench.behaviour.diff import behaviour_diff as behaviour_diff
    from workbench.behaviour.dose import DoseResponse as DoseResponse
    from workbench.behaviour.dose import dose_response as dose_response
    from workbench.behaviour.dosing import Dose as Dose
    from workbench.behaviour.metrics import METRICS as METRICS
    from workbench.behaviour.options import DiffOptions as DiffOptions
    from workbench.behaviour.parts import PartedDiff as PartedDiff
    from workbench.behaviour.parts import known_unknown as known_unknown
    from workbench.behaviour.parts import sure_unsure as sure_unsure
    from workbench.behaviour.result import BehaviourDiff as BehaviourDiff
    from workbench.behaviour.scope import ScopePanel as ScopePanel
    from workbench.behaviour.scope import scope_panel as scope_panel
    from workbench.behaviour.scores import score_answers as score_answers
    from workbench.behaviour.texts import is_refusal as is_refusal

_HOMES = {
    "METRICS": "metrics",
    "BehaviourDiff": "result",
    "DiffOptions": "options",
    "Dose": "dosing",
    "DoseResponse": "dose",
    "PartedDiff": "parts",
    "ScopePanel": "scope",
    "behaviour_diff": "diff",
    "dose_response": "dose",
    "is_refusal": "texts",
    "known_unknown": "parts",
    "scope_panel": "scope",
    "score_answers": "scores",
    "self_critique": "critique",
    "sure_unsure": "parts",
}
__all__ = [
    "METRICS",
    "BehaviourDiff",
    "DiffOptions",
    "Dose",
    "DoseResponse",
    "PartedDiff",
    "ScopePanel",
    "behaviour_diff",
    "dose_response",
    "is_refusal",
    "known_unknown",
    "scope_panel",
    "score_answers",
    "self_critique",
    "sure_unsure",
]

__getattr__ = lazy(__name__, _HOMES)
