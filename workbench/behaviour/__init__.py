"""What a model does, in numbers per prompt: base, tuned, and tuned under a recipe.

The module is itself a function: ``wb.behaviour("contains:sorry")`` is :func:`workbench.behaviour.scorers.behaviour`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.behaviour.by_certainty import PartedDiff as PartedDiff
    from workbench.behaviour.by_certainty import known_unknown as known_unknown
    from workbench.behaviour.by_certainty import sure_unsure as sure_unsure
    from workbench.behaviour.critique import self_critique as self_critique
    from workbench.behaviour.diff import behaviour_diff as behaviour_diff
    from workbench.behaviour.dose import DoseResponse as DoseResponse
    from workbench.behaviour.dose import dose_response as dose_response
    from workbench.behaviour.dosing import Dose as Dose
    from workbench.behaviour.fitted import fit as fit
    from workbench.behaviour.metrics import METRICS as METRICS
    from workbench.behaviour.options import DiffOptions as DiffOptions
    from workbench.behaviour.refusals import is_refusal as is_refusal
    from workbench.behaviour.result import BehaviourDiff as BehaviourDiff
    from workbench.behaviour.scope import ScopePanel as ScopePanel
    from workbench.behaviour.scope import scope_panel as scope_panel
    from workbench.behaviour.scorers import Behaviour as Behaviour
    from workbench.behaviour.scores import score_answers as score_answers

_HOMES = {
    "METRICS": "metrics",
    "Behaviour": "scorers",
    "BehaviourDiff": "result",
    "DiffOptions": "options",
    "Dose": "dosing",
    "DoseResponse": "dose",
    "PartedDiff": "by_certainty",
    "ScopePanel": "scope",
    "behaviour_diff": "diff",
    "dose_response": "dose",
    "fit": "fitted",
    "is_refusal": "refusals",
    "known_unknown": "by_certainty",
    "scope_panel": "scope",
    "score_answers": "scores",
    "self_critique": "critique",
    "sure_unsure": "by_certainty",
}
__all__ = [
    "METRICS",
    "Behaviour",
    "BehaviourDiff",
    "DiffOptions",
    "Dose",
    "DoseResponse",
    "PartedDiff",
    "ScopePanel",
    "behaviour_diff",
    "dose_response",
    "fit",
    "is_refusal",
    "known_unknown",
    "scope_panel",
    "score_answers",
    "self_critique",
    "sure_unsure",
]

__getattr__ = lazy(__name__, _HOMES)


class _CallableModule(ModuleType):
    """This package, which can be called."""

    def __call__(self, what: Any, name: str | None = None, *, share: bool | None = None) -> Behaviour:
        from workbench.behaviour.scorers import behaviour

        return behaviour(what, name, share=share)


sys.modules[__name__].__class__ = _CallableModule
