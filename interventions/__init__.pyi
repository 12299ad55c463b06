# Written by .ci/stubs.py (make stubs) from the package's table of lazy names; do not edit.

from interventions.activation_threshold import ActivationThreshold as ActivationThreshold
from interventions.adapter_routing import AdapterRouting as AdapterRouting
from interventions.attention_scale import AttentionScale as AttentionScale
from interventions.attention_scale import EagerAttentionWarning as EagerAttentionWarning
from interventions.base import Intervention as Intervention
from interventions.clamp import Clamp as Clamp
from interventions.concept_ablation import ConceptAblation as ConceptAblation
from interventions.directions import RankWarning as RankWarning
from interventions.exchange.adapter import to_adapter as to_adapter
from interventions.exchange.bake import bake as bake
from interventions.exchange.bake import baked as baked
from interventions.exchange.certificate import Certificate as Certificate
from interventions.exchange.certificate import certify as certify
from interventions.exchange.control_vectors import from_gguf as from_gguf
from interventions.exchange.control_vectors import to_gguf as to_gguf
from interventions.exchange.module import to_module as to_module
from interventions.exchange.reading import load_recipe as load_recipe
from interventions.exchange.vectors import from_steering_vectors as from_steering_vectors
from interventions.exchange.vectors import from_tensors as from_tensors
from interventions.expert_switch import ExpertSwitch as ExpertSwitch
from interventions.gate import Gate as Gate
from interventions.heads import HeadOffset as HeadOffset
from interventions.heads import HeadScale as HeadScale
from interventions.layer_skip import LayerSkip as LayerSkip
from interventions.logit_fusion import LogitFusion as LogitFusion
from interventions.logit_mix import LogitMix as LogitMix
from interventions.logit_shift import LogitShift as LogitShift
from interventions.norms import mean_norm as mean_norm
from interventions.offset import Offset as Offset
from interventions.offset_schedule import OffsetSchedule as OffsetSchedule
from interventions.offset_schedule import ScheduleWarning as ScheduleWarning
from interventions.one_line import recipe_from_text as recipe_from_text
from interventions.other_models import VocabularyWarning as VocabularyWarning
from interventions.patch import Patch as Patch
from interventions.peft_routers import LiveGates as LiveGates
from interventions.peft_routers import live_gates as live_gates
from interventions.recipe import Recipe as Recipe
from interventions.recipe import per_row as per_row
from interventions.recipe_book import RecipeBook as RecipeBook
from interventions.recipe_file import OtherModelWarning as OtherModelWarning
from interventions.saved_loras import lora_bank as lora_bank
from interventions.scope import UnknownPromptWarning as UnknownPromptWarning
from interventions.sink_handover import SinkHandover as SinkHandover
from interventions.source_run import Run as Run
from interventions.source_run import record_run as record_run
from interventions.subspace_knob import SubspaceKnob as SubspaceKnob
from interventions.sweep import dose as dose
from interventions.sweep import steered_texts as steered_texts
from interventions.sweep import swept as swept
from interventions.token_rules import TokenRules as TokenRules
from interventions.trace import Trace as Trace
from interventions.training.ablated import ablated_training as ablated_training
from interventions.training.ablated import caft_finetune as caft_finetune
from interventions.training.ablated import random_directions as random_directions
from interventions.training.anchored import anchored_finetune as anchored_finetune
from interventions.training.attachments import TrainedAttachment as TrainedAttachment
from interventions.training.attachments import train_instruction_prompts as train_instruction_prompts
from interventions.training.attachments import train_prompt_spaces as train_prompt_spaces
from interventions.training.attachments import train_side_path as train_side_path
from interventions.training.editing import edit_facts as edit_facts
from interventions.training.few_shot import FewShotTuning as FewShotTuning
from interventions.training.few_shot import few_shot_finetune as few_shot_finetune
from interventions.training.few_shot import label_words as label_words
from interventions.training.in_context import align_with_context as align_with_context
from interventions.training.longer_context import LongerContext as LongerContext
from interventions.training.longer_context import lengthen_context as lengthen_context
from interventions.training.markers import marked as marked
from interventions.training.masked import masked_finetune as masked_finetune
from interventions.training.offsets import train_offsets as train_offsets
from interventions.training.reward_head import RewardHead as RewardHead
from interventions.training.reward_head import train_reward_head as train_reward_head
from interventions.training.scales import train_head_scales as train_head_scales
from interventions.training.sensitive import sensitive_finetune as sensitive_finetune
from interventions.training.soft_prompt import SoftPrompt as SoftPrompt
from interventions.training.soft_prompt import train_soft_prompt as train_soft_prompt
from interventions.training.stages import Stage as Stage
from interventions.training.stages import compositions as compositions
from interventions.training.stages import tune_in_stages as tune_in_stages
from interventions.training.stages import tune_series as tune_series
from interventions.training.trainer import Schedule as Schedule
from interventions.voice_reader import Voice as Voice
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
from interventions.weightspace.merging import slerp as slerp
from interventions.weightspace.merging import ties as ties
from interventions.weightspace.merging import twin_merging as twin_merging
from interventions.weightspace.merging import uniform_soup as uniform_soup
from interventions.weightspace.task_vector import TaskVector as TaskVector
from interventions.xlora_folder import open_xlora as open_xlora
from workbench.engine.positions import Where as Where

__all__ = [
    "ActivationThreshold",
    "AdapterRouting",
    "AdapterScale",
    "AttentionScale",
    "Certificate",
    "Clamp",
    "ConceptAblation",
    "EagerAttentionWarning",
    "ExpertSwitch",
    "FewShotTuning",
    "Gate",
    "Graft",
    "HeadOffset",
    "HeadScale",
    "Intervention",
    "LayerScale",
    "LayerSkip",
    "LiveGates",
    "LogitFusion",
    "LogitMix",
    "LogitShift",
    "LongerContext",
    "Offset",
    "OffsetSchedule",
    "OtherModelWarning",
    "Patch",
    "RankWarning",
    "Recipe",
    "RecipeBook",
    "RewardHead",
    "Run",
    "Schedule",
    "ScheduleWarning",
    "SinkHandover",
    "SoftPrompt",
    "Stage",
    "SubspaceKnob",
    "TaskVector",
    "TokenRules",
    "Trace",
    "TrainedAttachment",
    "UnknownPromptWarning",
    "VocabularyWarning",
    "Voice",
    "Where",
    "ablated_training",
    "align_with_context",
    "anchored_finetune",
    "bake",
    "baked",
    "caft_finetune",
    "certify",
    "compositions",
    "dare",
    "dose",
    "edit_facts",
    "few_shot_finetune",
    "from_gguf",
    "from_steering_vectors",
    "from_tensors",
    "greedy_soup",
    "head_mask",
    "interpolated",
    "label_words",
    "lego",
    "lengthen_context",
    "live_gates",
    "load_recipe",
    "lora_bank",
    "lora_factors",
    "marked",
    "masked_finetune",
    "mean_norm",
    "model_stock",
    "open_xlora",
    "per_row",
    "random_directions",
    "recipe_from_text",
    "record_run",
    "row_mask",
    "sensitive_finetune",
    "slerp",
    "steered_texts",
    "swept",
    "tensor_mask",
    "ties",
    "to_adapter",
    "to_gguf",
    "to_module",
    "train_head_scales",
    "train_instruction_prompts",
    "train_offsets",
    "train_prompt_spaces",
    "train_reward_head",
    "train_side_path",
    "train_soft_prompt",
    "tune_in_stages",
    "tune_series",
    "twin_merging",
    "uniform_soup",
]
