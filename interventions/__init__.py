"""Everything that changes a model's computation, and the recipes that compose, keep and apply the changes.

``import interventions as iv`` costs nothing; each name is imported when it is first used.
"""

from __future__ import annotations

from workbench.lazy import lazy

_HOMES = {
    "AttentionScale": "attention_scale",
    "Clamp": "clamp",
    "ConceptAblation": "concept_ablation",
    "EagerAttentionWarning": "attention_scale",
    "ExpertSwitch": "expert_switch",
    "HeadOffset": "heads",
    "HeadScale": "heads",
    "Intervention": "base",
    "Offset": "offset",
    "OtherModelWarning": "recipe_file",
    "Patch": "patch",
    "RankWarning": "directions",
    "Recipe": "recipe",
    "Run": "source_run",
    "SubspaceKnob": "subspace_knob",
    "Trace": "trace",
    "Where": "scope",
    "mean_norm": "norms",
    "per_row": "recipe",
    "record_run": "source_run",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
