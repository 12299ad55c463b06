# Written by .ci/stubs.py (make stubs) from the package's table of lazy names; do not edit.

from interventions.attention_scale import AttentionScale as AttentionScale
from interventions.attention_scale import EagerAttentionWarning as EagerAttentionWarning
from interventions.base import Intervention as Intervention
from interventions.clamp import Clamp as Clamp
from interventions.concept_ablation import ConceptAblation as ConceptAblation
from interventions.directions import RankWarning as RankWarning
from interventions.exchange.adapter import to_adapter as to_adapter
from interventions.exchange.bake import bake as bake
from interventions.exchange.bake import baked as baked
from interventions.exchange.control_vectors import from_gguf as from_gguf
from interventions.exchange.control_vectors import to_gguf as to_gguf
from interventions.exchange.vectors import from_steering_vectors as from_steering_vectors
from interventions.exchange.vectors import from_tensors as from_tensors
from interventions.expert_switch import ExpertSwitch as ExpertSwitch
from interventions.gate import Gate as Gate
from interventions.heads import HeadOffset as HeadOffset
from interventions.heads import HeadScale as HeadScale
from interventions.logit_shift import LogitShift as LogitShift
from interventions.logit_shift import VocabularyWarning as VocabularyWarning
from interventions.norms import mean_norm as mean_norm
from interventions.offset import Offset as Offset
from interventions.one_line import recipe_from_text as recipe_from_text
from interventions.patch import Patch as Patch
from interventions.recipe import Recipe as Recipe
from interventions.recipe import per_row as per_row
from interventions.recipe_file import OtherModelWarning as OtherModelWarning
from interventions.scope import UnknownPromptWarning as UnknownPromptWarning
from interventions.source_run import Run as Run
from interventions.source_run import record_run as record_run
from interventions.subspace_knob import SubspaceKnob as SubspaceKnob
from interventions.sweep import dose as dose
from interventions.sweep import steered_texts as steered_texts
from interventions.sweep import swept as swept
from interventions.trace import Trace as Trace
from interventions.training.ablated import ablated_training as ablated_training
from interventions.training.ablated import caft_finetune as caft_finetune
from interventions.training.ablated import random_directions as random_directions
from interventions.training.offsets import train_offsets as train_offsets
from interventions.training.scales import train_head_scales as train_head_scales
from interventions.training.trainer import Schedule as Schedule
from interventions.weightspace.adapter_scale import AdapterScale as AdapterScale
from interventions.weightspace.graft import Graft as Graft
from interventions.weightspace.layer_scale import LayerScale as LayerScale
from interventions.weightspace.lora_lego import lego as lego
from interventions.weightspace.lora_lego import lora_factors as lora_factors
from interventions.weightspace.masks import head_mask as head_mask
from interventions.weightspace.masks import row_mask as row_mask
from interventions.weightspace.masks import tensor_mask as tensor_mask
from interventions.weightspace.merging import dare as dare
from interventions.weightspace.merging import greedy_soup as greedy_soup
from interventions.weightspace.merging import interpolated as interpolated
from interventions.weightspace.merging import model_stock as model_stock
from interventions.weightspace.merging import ties as ties
from interventions.weightspace.merging import twin_merging as twin_merging
from interventions.weightspace.merging import uniform_soup as uniform_soup
from interventions.weightspace.task_vector import TaskVector as TaskVector
from workbench.engine.positions import Where as Where

__all__ = [
    "AdapterScale",
    "AttentionScale",
    "Clamp",
    "ConceptAblation",
    "EagerAttentionWarning",
    "ExpertSwitch",
    "Gate",
    "Graft",
    "HeadOffset",
    "HeadScale",
    "Intervention",
    "LayerScale",
    "LogitShift",
    "Offset",
    "OtherModelWarning",
    "Patch",
    "RankWarning",
    "Recipe",
    "Run",
    "Schedule",
    "SubspaceKnob",
    "TaskVector",
    "Trace",
    "UnknownPromptWarning",
    "VocabularyWarning",
    "Where",
    "ablated_training",
    "bake",
    "baked",
    "caft_finetune",
    "dare",
    "dose",
    "from_gguf",
    "from_steering_vectors",
    "from_tensors",
    "greedy_soup",
    "head_mask",
    "interpolated",
    "lego",
    "lora_factors",
    "mean_norm",
    "model_stock",
    "per_row",
    "random_directions",
    "recipe_from_text",
    "record_run",
    "row_mask",
    "steered_texts",
    "swept",
    "tensor_mask",
    "ties",
    "to_adapter",
    "to_gguf",
    "train_head_scales",
    "train_offsets",
    "twin_merging",
    "uniform_soup",
]
