"""Everything that changes a model's computation, and the recipes that compose, keep and apply the changes.

``import interventions as iv`` costs nothing; each name is imported when it is first used.
"""

from __future__ import annotations

from workbench.lazy import lazy

_HOMES = {
    "ActivationThreshold": "activation_threshold",
    "AdapterRouting": "adapter_routing",
    "AdapterScale": "weightspace.adapter_scale",
    "AttentionScale": "attention_scale",
    "Clamp": "clamp",
    "ConceptAblation": "concept_ablation",
    "EagerAttentionWarning": "attention_scale",
    "ExpertSwitch": "expert_switch",
    "Gate": "gate",
    "Graft": "weightspace.graft",
    "HeadOffset": "heads",
    "HeadScale": "heads",
    "Intervention": "base",
    "LayerScale": "weightspace.layer_scale",
    "LayerSkip": "layer_skip",
    "LogitFusion": "logit_fusion",
    "LogitMix": "logit_mix",
    "LogitShift": "logit_shift",
    "Offset": "offset",
    "OffsetSchedule": "offset_schedule",
    "OtherModelWarning": "recipe_file",
    "Patch": "patch",
    "RankWarning": "directions",
    "Recipe": "recipe",
    "RecipeBook": "recipe_book",
    "Run": "source_run",
    "Schedule": "training.trainer",
    "SinkHandover": "sink_handover",
    "SubspaceKnob": "subspace_knob",
    "TaskVector": "weightspace.task_vector",
    "TokenRules": "token_rules",
    "Trace": "trace",
    "UnknownPromptWarning": "scope",
    "VocabularyWarning": "logit_shift",
    "Voice": "voice_reader",
    "Where": "scope",
    "ablated_training": "training.ablated",
    "Certificate": "exchange.certificate",
    "bake": "exchange.bake",
    "baked": "exchange.bake",
    "certify": "exchange.certificate",
    "caft_finetune": "training.ablated",
    "dare": "weightspace.merging",
    "dose": "sweep",
    "from_gguf": "exchange.control_vectors",
    "from_steering_vectors": "exchange.vectors",
    "from_tensors": "exchange.vectors",
    "greedy_soup": "weightspace.merging",
    "head_mask": "weightspace.masks",
    "interpolated": "weightspace.merging",
    "lego": "weightspace.lora_lego",
    "load_recipe": "exchange.reading",
    "lora_bank": "saved_loras",
    "lora_factors": "weightspace.lora_lego",
    "mean_norm": "norms",
    "model_stock": "weightspace.merging",
    "per_row": "recipe",
    "random_directions": "training.ablated",
    "recipe_from_text": "one_line",
    "record_run": "source_run",
    "row_mask": "weightspace.masks",
    "steered_texts": "sweep",
    "swept": "sweep",
    "tensor_mask": "weightspace.masks",
    "ties": "weightspace.merging",
    "to_adapter": "exchange.adapter",
    "to_gguf": "exchange.control_vectors",
    "train_head_scales": "training.scales",
    "train_offsets": "training.offsets",
    "twin_merging": "weightspace.merging",
    "uniform_soup": "weightspace.merging",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
