"""Finding where a behaviour lives: every probe returns a result with its control, interval and cost."""

from __future__ import annotations

from workbench.lazy import lazy

_HOME = {
    "ActivationDelta": "deltas",
    "AnswerChanges": "answer_changes",
    "CircuitTest": "paths.circuit_result",
    "Comparison": "comparison",
    "ContrastiveGenerations": "decoding.generations",
    "CrossPatching": "paths.cross_model",
    "ComponentMasking": "desiderata.result",
    "ConceptDirections": "concepts.probe",
    "Dictionary": "concepts.dictionary",
    "ExpertMap": "experts.mapping",
    "GraftResult": "grafting",
    "HeadProbe": "linear.heads",
    "HeadSelection": "selection",
    "HeadWords": "head_writes",
    "Knob": "knob.result",
    "KnobSetup": "knob.find:Setup",
    "KnobTraining": "knob.subspace:Training",
    "LogitLens": "lens",
    "MaskOverlap": "grafting.overlap",
    "MaskTest": "needles.masking",
    "Needle": "needles.trials",
    "PathPatching": "paths.result",
    "Patching": "patches.result",
    "ProbabilityMovement": "decoding.movement",
    "ProbeResult": "results",
    "Provenance": "results",
    "RetrievalHeads": "needles.heads",
    "SwitchingCurve": "experts.switching",
    "TokenShift": "token_ranks",
    "WeightDelta": "weights",
    "activation_delta": "deltas",
    "answers": "answer_changes",
    "box_desiderata": "desiderata.boxes",
    "box_prompts": "desiderata.boxes",
    "circuit": "paths.circuits",
    "cmap": "paths.cross_model",
    "compare": "comparison",
    "component_masking": "desiderata.masking",
    "concept_directions": "concepts.probe",
    "contrastive_generations": "decoding.generations",
    "expert_map": "experts.mapping",
    "find_knob": "knob.find",
    "graft": "grafting",
    "head_probe": "linear.heads",
    "head_selection": "selection",
    "head_words": "head_writes",
    "logit_lens": "lens",
    "mask_heads": "needles.masking",
    "mask_overlap": "grafting",
    "needle_search": "needles.search",
    "needle_trials": "needles.trials",
    "patching": "patches.patching",
    "path_patching": "paths.finding",
    "probability_movement": "decoding.movement",
    "retrieval_heads": "needles.heads",
    "stand_ins": "random_recipes",
    "switching_curve": "experts.switching",
    "token_shift": "token_ranks",
    "weight_delta": "weights",
}
__all__ = sorted(_HOME)

__getattr__ = lazy("probes", _HOME)


def __dir__() -> list[str]:
    return __all__
