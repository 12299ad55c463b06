# Written by .ci/stubs.py (make stubs) from the package's table of lazy names; do not edit.

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from probes.against_null_adapters import AgainstNulls as AgainstNulls
from probes.against_null_adapters import against_nulls as against_nulls
from probes.anatomy.attachment_reading import part_effects as part_effects
from probes.anatomy.attachment_reading import realised_prompts as realised_prompts
from probes.anatomy.attachment_reading import side_shares as side_shares
from probes.anatomy.decomposed_prompt import DecomposedPrompt as DecomposedPrompt
from probes.anatomy.decomposed_prompt import decomposed_prompt as decomposed_prompt
from probes.anatomy.input_side import InputSide as InputSide
from probes.anatomy.input_side import input_side as input_side
from probes.anatomy.input_spans import InputSpans as InputSpans
from probes.anatomy.input_spans import input_spans as input_spans
from probes.anatomy.likeness import LoraLikeness as LoraLikeness
from probes.anatomy.likeness import lora_likeness as lora_likeness
from probes.anatomy.lora_blocks import LoraBlocks as LoraBlocks
from probes.anatomy.lora_blocks import lora_blocks as lora_blocks
from probes.anatomy.panel import AdapterPanel as AdapterPanel
from probes.anatomy.panel import adapter_panel as adapter_panel
from probes.anatomy.prefix import PrefixGates as PrefixGates
from probes.anatomy.prefix import prefix_gates as prefix_gates
from probes.anatomy.random_bases import RandomBases as RandomBases
from probes.anatomy.random_bases import random_bases as random_bases
from probes.anatomy.update import UpdateAnatomy as UpdateAnatomy
from probes.anatomy.update import update_anatomy as update_anatomy
from probes.anatomy.virtual_tokens import VirtualTokenMap as VirtualTokenMap
from probes.anatomy.virtual_tokens import virtual_tokens as virtual_tokens
from probes.answer_changes import AnswerChanges as AnswerChanges
from probes.answer_changes import answers as answers
from probes.attending.awareness import ContextAwareness as ContextAwareness
from probes.attending.awareness import context_awareness as context_awareness
from probes.attending.confidence import AttentionConfidence as AttentionConfidence
from probes.attending.confidence import attention_confidence as attention_confidence
from probes.attending.pattern_types import PatternTypes as PatternTypes
from probes.attending.pattern_types import pattern_types as pattern_types
from probes.attending.targets import TargetAttention as TargetAttention
from probes.attending.targets import target_attention as target_attention
from probes.attending.tuning import AttentionTuning as AttentionTuning
from probes.attending.tuning import attention_tuning as attention_tuning
from probes.attributes.dial import IntensityDial as IntensityDial
from probes.attributes.dial import intensity_dial as intensity_dial
from probes.attributes.directions import AttributeDirections as AttributeDirections
from probes.attributes.directions import attribute_directions as attribute_directions
from probes.attributes.intersection import AttributeIntersection as AttributeIntersection
from probes.attributes.intersection import attribute_intersection as attribute_intersection
from probes.attributes.pplm import PlugAndPlay as PlugAndPlay
from probes.attributes.pplm import pplm as pplm
from probes.attributes.style import StyleTransfer as StyleTransfer
from probes.attributes.style import writing_style as writing_style
from probes.attributes.subjects import SubjectOffset as SubjectOffset
from probes.attributes.subjects import subject_offset as subject_offset
from probes.attributes.switch import PlantedSwitch as PlantedSwitch
from probes.attributes.switch import planted_switch as planted_switch
from probes.attributes.token_guidance import TokenGuidance as TokenGuidance
from probes.attributes.token_guidance import token_guidance as token_guidance
from probes.audits.auditing import Audit as Audit
from probes.audits.auditing import audit as audit
from probes.comparison import Comparison as Comparison
from probes.comparison import compare as compare
from probes.concepts.dictionary import Dictionary as Dictionary
from probes.concepts.probe import ConceptDirections as ConceptDirections
from probes.concepts.probe import concept_directions as concept_directions
from probes.decoding.focused import FocusedPrefix as FocusedPrefix
from probes.decoding.focused import focused_prefix as focused_prefix
from probes.decoding.generations import ContrastiveGenerations as ContrastiveGenerations
from probes.decoding.generations import contrastive_generations as contrastive_generations
from probes.decoding.guidance import GuidanceFront as GuidanceFront
from probes.decoding.guidance import guidance_front as guidance_front
from probes.decoding.movement import ProbabilityMovement as ProbabilityMovement
from probes.decoding.movement import probability_movement as probability_movement
from probes.decoding.switching import EntropySwitching as EntropySwitching
from probes.decoding.switching import entropy_switching as entropy_switching
from probes.deltas import ActivationDelta as ActivationDelta
from probes.deltas import activation_delta as activation_delta
from probes.desiderata.boxes import box_desiderata as box_desiderata
from probes.desiderata.boxes import box_prompts as box_prompts
from probes.desiderata.result import ComponentMasking as ComponentMasking
from probes.dictionaries.result import TuningDictionary as TuningDictionary
from probes.dictionaries.train import tuning_dictionary as tuning_dictionary
from probes.directions.find import DirectionOptions as DirectionOptions
from probes.directions.result import FoundDirection as FoundDirection
from probes.edges.attribution import EdgeAttribution as EdgeAttribution
from probes.edges.attribution import edge_attribution as edge_attribution
from probes.editing.sites import EditSites as EditSites
from probes.editing.sites import edit_sites as edit_sites
from probes.effects.calibration_counter import calibration_counter_test as calibration_counter_test
from probes.effects.certainty import certainty_split as certainty_split
from probes.effects.constraints import constraint_satisfaction as constraint_satisfaction
from probes.effects.context_preference import context_preference as context_preference
from probes.effects.context_use import context_use as context_use
from probes.effects.deployment import deployment_gap as deployment_gap
from probes.effects.early_signs import early_signs as early_signs
from probes.effects.fault_tokens import FaultTokens as FaultTokens
from probes.effects.fault_tokens import fault_tokens as fault_tokens
from probes.effects.generalization import generalization_levels as generalization_levels
from probes.effects.languages import language_transfer as language_transfer
from probes.effects.panel import EffectPanel as EffectPanel
from probes.effects.pollution import Pollution as Pollution
from probes.effects.pollution import pollution as pollution
from probes.effects.preference import preference_movement as preference_movement
from probes.effects.scaling_law import scaling_law as scaling_law
from probes.effects.self_correction import self_correction as self_correction
from probes.effects.skills import skill_profile as skill_profile
from probes.effects.skills import visited_forgetting as visited_forgetting
from probes.effects.spurious import spurious_attributes as spurious_attributes
from probes.effects.tool_calls import tool_errors as tool_errors
from probes.effects.two_axes import two_axes as two_axes
from probes.effects.undoing import Undoing as Undoing
from probes.effects.undoing import undoing as undoing
from probes.experts.counting import Excluded
from probes.experts.domains import DomainExperts as DomainExperts
from probes.experts.domains import domain_experts as domain_experts
from probes.experts.labels import Labeller
from probes.experts.mapping import ExpertMap as ExpertMap
from probes.experts.sets import ExpertSets as ExpertSets
from probes.experts.sets import expert_sets as expert_sets
from probes.experts.switching import Behaviour as _Behaviour
from probes.experts.switching import Mode
from probes.experts.switching import SwitchingCurve as SwitchingCurve
from probes.gates.fitting import GateFit as GateFit
from probes.gates.fitting import fit_gate as fit_gate
from probes.grafting.overlap import MaskOverlap as MaskOverlap
from probes.grafting.overlap import mask_overlap as mask_overlap
from probes.grafting.regions import Level
from probes.grafting.result import GraftResult as GraftResult
from probes.grafting.search import Method
from probes.head_writes import HeadWords as HeadWords
from probes.head_writes import head_words as head_words
from probes.influence.codes import code_similarity as code_similarity
from probes.influence.demonstrations import demonstration_utility as demonstration_utility
from probes.influence.less import row_influence as row_influence
from probes.influence.result import RowInfluence as RowInfluence
from probes.influence.retraining import Retraining as Retraining
from probes.influence.retraining import retrain_without as retrain_without
from probes.knob.find import Setup as KnobSetup
from probes.knob.find import find_knob as find_knob
from probes.knob.result import Knob as Knob
from probes.knob.subspace import Training as KnobTraining
from probes.lens import LogitLens as LogitLens
from probes.lens import logit_lens as logit_lens
from probes.linear.heads import HeadProbe as HeadProbe
from probes.linear.heads import head_probe as head_probe
from probes.needles.heads import RetrievalHeads as RetrievalHeads
from probes.needles.lengths import SameHeads as SameHeads
from probes.needles.lengths import same_heads as same_heads
from probes.needles.masking import Mask
from probes.needles.masking import MaskTest as MaskTest
from probes.needles.search import needle_search as needle_search
from probes.needles.trials import Needle as Needle
from probes.needles.trials import Trial
from probes.needles.trials import needle_trials as needle_trials
from probes.parts.blocks import BlockFlips as BlockFlips
from probes.parts.blocks import block_flips as block_flips
from probes.parts.scale_sweep import ScaleSweep as ScaleSweep
from probes.parts.scale_sweep import scale_sweep as scale_sweep
from probes.parts.split import UpdateParts as UpdateParts
from probes.parts.split import update_parts as update_parts
from probes.patches.result import Patching as Patching
from probes.paths.circuit_result import CircuitTest as CircuitTest
from probes.paths.cross_model import CrossPatching as CrossPatching
from probes.paths.groups import Heads
from probes.paths.places import Place
from probes.paths.result import PathPatching as PathPatching
from probes.random_recipes import stand_ins as stand_ins
from probes.representation.attribute_suite import AttributeSuite as AttributeSuite
from probes.representation.attribute_suite import attribute_suite as attribute_suite
from probes.representation.concept_drift import ConceptDrift as ConceptDrift
from probes.representation.concept_drift import concept_drift as concept_drift
from probes.representation.concept_words import concept_words as concept_words
from probes.representation.cross_task import CrossTask as CrossTask
from probes.representation.cross_task import cross_task as cross_task
from probes.representation.curved_path import CurvedPath as CurvedPath
from probes.representation.curved_path import curved_path as curved_path
from probes.representation.direction_transfer import DirectionTransfer as DirectionTransfer
from probes.representation.direction_transfer import direction_transfer as direction_transfer
from probes.representation.gap import representation_gap as representation_gap
from probes.representation.in_context import in_context_activations as in_context_activations
from probes.representation.instructions import instruction_attribution as instruction_attribution
from probes.representation.layer_views import LayerViews as LayerViews
from probes.representation.layer_views import layer_views as layer_views
from probes.representation.neurons import NeuronConcepts as NeuronConcepts
from probes.representation.neurons import concept_neurons as concept_neurons
from probes.representation.question_dependency import question_dependency as question_dependency
from probes.representation.separability import CellShifts as CellShifts
from probes.representation.separability import class_separability as class_separability
from probes.representation.separability import procrustes_drift as procrustes_drift
from probes.representation.set_algebra import SetAlgebra as SetAlgebra
from probes.representation.set_algebra import set_algebra as set_algebra
from probes.representation.source_trust import source_trust as source_trust
from probes.representation.suite import ProbeSuite as ProbeSuite
from probes.representation.suite import probe_suite as probe_suite
from probes.results import ProbeResult as ProbeResult
from probes.retention.erasure import ErasureVerdict as ErasureVerdict
from probes.retention.erasure import erased_or_displaced as erased_or_displaced
from probes.retention.factors import position_effect as position_effect
from probes.retention.factors import template_effect as template_effect
from probes.retention.format_spread import FormatSpread as FormatSpread
from probes.retention.format_spread import format_spread as format_spread
from probes.retention.inherent_limits import InherentLimits as InherentLimits
from probes.retention.inherent_limits import inherent_limits as inherent_limits
from probes.retention.many_shot import many_shot_curve as many_shot_curve
from probes.retention.phrasings import phrasing_robustness as phrasing_robustness
from probes.retention.soft_prompt_split import soft_prompt_split as soft_prompt_split
from probes.routing.mapping import RoutingMap as RoutingMap
from probes.routing.mapping import routing_map as routing_map
from probes.selection import HeadSelection as HeadSelection
from probes.selection_scores.token_relevance import TokenRelevance as TokenRelevance
from probes.selection_scores.token_relevance import token_relevance as token_relevance
from probes.selection_scores.trial import SelectionTrial as SelectionTrial
from probes.selection_scores.trial import selection_trial as selection_trial
from probes.selection_scores.tuning_trial import TuningTrial as TuningTrial
from probes.selection_scores.tuning_trial import tuning_trial as tuning_trial
from probes.series.adapter_bank import AdapterBank as AdapterBank
from probes.series.adapter_bank import adapter_bank as adapter_bank
from probes.series.churn import MaskChurn as MaskChurn
from probes.series.churn import mask_churn as mask_churn
from probes.series.collisions import AbilityCollisions as AbilityCollisions
from probes.series.collisions import ability_collisions as ability_collisions
from probes.series.composition import SparseComposition as SparseComposition
from probes.series.composition import sparse_composition as sparse_composition
from probes.series.contexts import ContextUpdates as ContextUpdates
from probes.series.contexts import context_updates as context_updates
from probes.series.curve import SeriesCurve as SeriesCurve
from probes.series.curve import series_curve as series_curve
from probes.series.factor_averages import FactorAverages as FactorAverages
from probes.series.factor_averages import factor_averages as factor_averages
from probes.series.label_curves import elicitation_curve as elicitation_curve
from probes.series.label_curves import sample_efficiency as sample_efficiency
from probes.series.learned_scaling import LearnedScaling as LearnedScaling
from probes.series.learned_scaling import learned_scaling as learned_scaling
from probes.series.lora_chain import LoraChain as LoraChain
from probes.series.lora_chain import lora_chain as lora_chain
from probes.series.merges import MergeTest as MergeTest
from probes.series.merges import merge_test as merge_test
from probes.series.online_offline import OnlineOffline as OnlineOffline
from probes.series.online_offline import online_offline as online_offline
from probes.series.profile import SeriesProfile as SeriesProfile
from probes.series.profile import series_profile as series_profile
from probes.series.reconstruction import Reconstruction as Reconstruction
from probes.series.reconstruction import adapter_reconstruction as adapter_reconstruction
from probes.series.shared_part import SharedPart as SharedPart
from probes.series.shared_part import shared_part as shared_part
from probes.series.synergy import MergeSynergy as MergeSynergy
from probes.series.synergy import merge_synergy as merge_synergy
from probes.series.twin import TwinMergeTest as TwinMergeTest
from probes.series.twin import twin_merge as twin_merge
from probes.sparsity.neurons import SparsityCurve as SparsityCurve
from probes.sparsity.neurons import sparsity_curve as sparsity_curve
from probes.sparsity.paths import LayerPaths as LayerPaths
from probes.sparsity.paths import layer_paths as layer_paths
from probes.token_ranks import TokenShift as TokenShift
from probes.token_ranks import token_shift as token_shift
from probes.turning.comparing import WaysToTurn as WaysToTurn
from probes.turning.comparing import ways_to_turn as ways_to_turn
from probes.weights.delta import weight_delta as weight_delta
from probes.weights.forms import ChangeForms as ChangeForms
from probes.weights.forms import change_forms as change_forms
from probes.weights.rank_map import RankMap as RankMap
from probes.weights.rank_map import rank_map as rank_map
from probes.weights.result import WeightDelta as WeightDelta
from workbench.behaviour.scorers import Behaviour, Score
from workbench.method_options import As, Within
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.results import Provenance as Provenance

__all__ = [
    "AbilityCollisions",
    "ActivationDelta",
    "AdapterBank",
    "AdapterPanel",
    "AgainstNulls",
    "AnswerChanges",
    "AttentionConfidence",
    "AttentionTuning",
    "AttributeDirections",
    "AttributeIntersection",
    "AttributeSuite",
    "Audit",
    "BlockFlips",
    "CellShifts",
    "ChangeForms",
    "CircuitTest",
    "Comparison",
    "ComponentMasking",
    "ConceptDirections",
    "ConceptDrift",
    "ContextAwareness",
    "ContextUpdates",
    "ContrastiveGenerations",
    "CrossPatching",
    "CrossTask",
    "CurvedPath",
    "DecomposedPrompt",
    "Dictionary",
    "DirectionOptions",
    "DirectionTransfer",
    "DomainExperts",
    "EdgeAttribution",
    "EditSites",
    "EffectPanel",
    "EntropySwitching",
    "ErasureVerdict",
    "ExpertMap",
    "ExpertSets",
    "FactorAverages",
    "FaultTokens",
    "FocusedPrefix",
    "FormatSpread",
    "FoundDirection",
    "GateFit",
    "GraftResult",
    "GuidanceFront",
    "HeadProbe",
    "HeadSelection",
    "HeadWords",
    "InherentLimits",
    "InputSide",
    "InputSpans",
    "IntensityDial",
    "Knob",
    "KnobSetup",
    "KnobTraining",
    "LayerPaths",
    "LayerViews",
    "LearnedScaling",
    "LogitLens",
    "LoraBlocks",
    "LoraChain",
    "LoraLikeness",
    "MaskChurn",
    "MaskOverlap",
    "MaskTest",
    "MergeSynergy",
    "MergeTest",
    "Needle",
    "NeuronConcepts",
    "OnlineOffline",
    "Patching",
    "PathPatching",
    "PatternTypes",
    "PlantedSwitch",
    "PlugAndPlay",
    "Pollution",
    "PrefixGates",
    "ProbabilityMovement",
    "ProbeResult",
    "ProbeSuite",
    "Provenance",
    "RandomBases",
    "RankMap",
    "Reconstruction",
    "Retraining",
    "RetrievalHeads",
    "RoutingMap",
    "RowInfluence",
    "SameHeads",
    "ScaleSweep",
    "SelectionTrial",
    "SeriesCurve",
    "SeriesProfile",
    "SetAlgebra",
    "SharedPart",
    "SparseComposition",
    "SparsityCurve",
    "StyleTransfer",
    "SubjectOffset",
    "SwitchingCurve",
    "TargetAttention",
    "TokenGuidance",
    "TokenRelevance",
    "TokenShift",
    "TuningDictionary",
    "TuningTrial",
    "TwinMergeTest",
    "Undoing",
    "UpdateAnatomy",
    "UpdateParts",
    "VirtualTokenMap",
    "WaysToTurn",
    "WeightDelta",
    "ability_collisions",
    "activation_delta",
    "adapter_bank",
    "adapter_panel",
    "adapter_reconstruction",
    "against_nulls",
    "answers",
    "attention_confidence",
    "attention_tuning",
    "attribute_directions",
    "attribute_intersection",
    "attribute_suite",
    "audit",
    "block_flips",
    "box_desiderata",
    "box_prompts",
    "calibration_counter_test",
    "certainty_split",
    "change_forms",
    "circuit",
    "class_separability",
    "cmap",
    "code_similarity",
    "compare",
    "component_masking",
    "concept_directions",
    "concept_drift",
    "concept_neurons",
    "concept_words",
    "constraint_satisfaction",
    "context_awareness",
    "context_preference",
    "context_updates",
    "context_use",
    "contrastive_generations",
    "cross_task",
    "curved_path",
    "decomposed_prompt",
    "demonstration_utility",
    "deployment_gap",
    "direction_transfer",
    "domain_experts",
    "early_signs",
    "edge_attribution",
    "edit_sites",
    "elicitation_curve",
    "entropy_switching",
    "erased_or_displaced",
    "expert_map",
    "expert_sets",
    "factor_averages",
    "fault_tokens",
    "find_direction",
    "find_knob",
    "fit_gate",
    "focused_prefix",
    "format_spread",
    "generalization_levels",
    "graft",
    "guidance_front",
    "head_probe",
    "head_selection",
    "head_words",
    "in_context_activations",
    "inherent_limits",
    "input_side",
    "input_spans",
    "instruction_attribution",
    "intensity_dial",
    "language_transfer",
    "layer_paths",
    "layer_views",
    "learned_scaling",
    "logit_lens",
    "lora_blocks",
    "lora_chain",
    "lora_likeness",
    "many_shot_curve",
    "mask_churn",
    "mask_heads",
    "mask_overlap",
    "merge_synergy",
    "merge_test",
    "needle_search",
    "needle_trials",
    "online_offline",
    "part_effects",
    "patching",
    "path_patching",
    "pattern_types",
    "phrasing_robustness",
    "planted_switch",
    "pollution",
    "position_effect",
    "pplm",
    "preference_movement",
    "prefix_gates",
    "probability_movement",
    "probe_suite",
    "procrustes_drift",
    "question_dependency",
    "random_bases",
    "rank_map",
    "realised_prompts",
    "representation_gap",
    "retrain_without",
    "retrieval_heads",
    "routing_map",
    "row_influence",
    "same_heads",
    "sample_efficiency",
    "scale_sweep",
    "scaling_law",
    "selection_trial",
    "self_correction",
    "series_curve",
    "series_profile",
    "set_algebra",
    "shared_part",
    "side_shares",
    "skill_profile",
    "soft_prompt_split",
    "source_trust",
    "sparse_composition",
    "sparsity_curve",
    "spurious_attributes",
    "stand_ins",
    "subject_offset",
    "switching_curve",
    "target_attention",
    "template_effect",
    "token_guidance",
    "token_relevance",
    "token_shift",
    "tool_errors",
    "tuning_dictionary",
    "tuning_trial",
    "twin_merge",
    "two_axes",
    "undoing",
    "update_anatomy",
    "update_parts",
    "virtual_tokens",
    "visited_forgetting",
    "ways_to_turn",
    "weight_delta",
    "writing_style",
]

def circuit(
    subject: Any,
    prompts: Any,
    heads: Annotated[Heads, As("heads by place")],
    metric: Literal["accuracy", "prob", "logit_diff"] | str = "accuracy",
    *,
    reference: Annotated[Any, As("prompts")] = None,
    controls: int = 20,
    parts: int = 20,
    minimality: bool = False,
    redundant: float = 0.3,
    threshold: float = 0.01,
    batch_size: int = 16,
    max_tokens: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> CircuitTest:
    """Run only ``heads`` and mean-ablate all others, at every position; compare with the whole model.

    Options: :class:`probes.paths.circuits.CircuitOptions`.
    """

def cmap(
    pair: Any,
    prompts: Any,
    heads: Annotated[Heads, As("heads by place")],
    metric: Literal["accuracy", "prob", "logit_diff"] | str = "accuracy",
    *,
    controls: int = 20,
    batch_size: int = 16,
    max_tokens: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> CrossPatching:
    """Copy z of ``heads`` from the tuned model's run into the base's on the same prompts, and the reverse.

    Options: :class:`probes.paths.cross_model.CrossOptions`.
    """

def component_masking(
    subject: Any,
    desiderata: Annotated[Any, As("prompt sets")],
    position: Place = "last",
    *,
    heads: Sequence[str] | None = None,
    penalties: Sequence[float] = (0.001, 0.01, 0.1),
    epochs: int = 2,
    learning_rate: float = 0.1,
    batch_size: int = 32,
    controls: int = 20,
    max_tokens: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> ComponentMasking:
    """Learn which heads' z, taken from the source prompt at ``position``, turns the base prompt's answer into the
    target; later layers recompute.

    Options: :class:`probes.desiderata.masking.MaskingOptions`.
    """

def expert_map(
    subject: Any,
    prompts: Any,
    labels: Annotated[Sequence[Any] | Labeller | None, As("column")] = None,
    target: Annotated[Any, As("value")] = None,
    *,
    phase: Literal["prefill", "decode", "both"] = "prefill",
    score: Literal["share", "token_rate"] = "share",
    reference: Literal["base"] | None = "base",
    positions: Literal["all", "last"] = "all",
    exclude: Annotated[Excluded, As("value")] = "none",
    test: Literal["mannwhitney", "permutation"] = "mannwhitney",
    responses: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    top: int | None = None,
    draws: int = 500,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExpertMap:
    """Which experts the model uses more for prompts of the ``target`` class of behaviour than for the others.

    Options: :class:`probes.experts.mapping.MapOptions`.
    """

def find_direction(
    pair: ModelPair,
    prompts: Any,
    behaviour: Annotated[str | Score | Behaviour, As("behaviour")] = "refusal",
    *,
    neutral: Annotated[Any, As("prompts")] = None,
    allowed_rise: Annotated[float, Within(0, None)] = 0.02,
    limit: int = 16,
    max_new_tokens: int = 16,
    candidates: int = 9,
    controls: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> FoundDirection:
    """Find the direction of a behaviour that only the tuned model has, and a recipe that turns it off.

    Options: :class:`probes.directions.find.DirectionOptions`.
    """

def graft(
    pair: Any,
    prompts: Any,
    *,
    method: Method | str = "adaptive",
    level: Level | str = "entries",
    sparsity: Annotated[float, Within(1e-12, 1)] = 0.001,
    answer_tokens: Literal["first", "all"] | str = "first",
    ood: Annotated[Any, As("prompts")] = None,
    seed: int = 0,
    progress: Progress | None = None,
    epochs: int = 30,
    start: Literal["movement", "empty"] = "movement",
    offset: float | None = None,
    lr: float | None = None,
    penalty: float = 0.03,
    sparsities: Sequence[float] = (1e-05, 0.0001, 0.001, 0.01, 0.02, 0.05, 0.1, 1.0),
    draws: int = 10,
    batch_size: int = 32,
) -> GraftResult:
    """Find the weights of the tuned model that, put into the base, carry the task of ``prompts``.

    Options: :class:`probes.grafting.search.Settings`.
    """

def head_selection(
    subject: Any,
    prompts: Any,
    *,
    penalty: float = 0.001,
    epochs: int = 5,
    learning_rate: float = 0.005,
    batch_size: int = 8,
    end: bool = True,
    resamples: int = 4,
    holdout: float = 0.25,
    heads: int | None = None,
    other: Annotated[Any, As("prompts")] = None,
    controls: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> HeadSelection:
    """Train one scaling per entry of every head's z for the prompts' ``answer`` and rank heads by its norm.

    Options: :class:`probes.selection.SelectionOptions`.
    """

def mask_heads(
    subject: Any,
    trials: Sequence[Trial],
    heads: RetrievalHeads | Sequence[str],
    counts: Sequence[int] = (1, 2, 4, 8),
    *,
    how: Mask = "zero",
    max_new_tokens: int = 50,
    controls: int = 10,
    seed: int = 0,
) -> MaskTest:
    """Answer the trials with the first n of ``heads`` masked, for every n of ``counts``.

    Options: :class:`probes.needles.masking.MaskOptions`.
    """

def patching(
    subject: Any,
    prompts: Any,
    sites: str | Sequence[str] = "heads",
    source: str | None = None,
    target: str | None = None,
    what: Literal["z", "write"] | str = "write",
    metric: Literal["logit_diff", "prob", "kl"] | str = "logit_diff",
    *,
    positions: str | int | Sequence[int] | None = None,
    layers: Any = None,
    inputs: Literal["source", "target"] = "source",
    method: Literal["auto", "exact", "attribution", "ig"] = "auto",
    exact: bool = False,
    answer_tokens: Literal["first", "all"] = "first",
    confirm: float = 0.1,
    confirm_others: float = 0.02,
    ig_steps: int = 5,
    normalise: bool = True,
    only_correct: bool = False,
    together: int | None = None,
    controls: int = 10,
    batch_size: int = 16,
    max_tokens: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """Put activations of the source run into the target run, one cell at a time, and measure the last position.

    Options: :class:`probes.patches.settings.PatchOptions`.
    """

def path_patching(
    subject: Any,
    prompts: Any,
    receivers: str | Sequence[str] = "logits",
    through: Literal["q", "k", "v"] | str = "q",
    position: Place = "last",
    source: Literal["corrupted", "clean", "tuned", "base"] | str = "corrupted",
    target: Literal["clean", "corrupted", "base", "tuned"] | str = "clean",
    metric: Literal["prob_ratio", "logit_diff"] | str = "prob_ratio",
    *,
    senders: Sequence[str] | None = None,
    layers: Any = None,
    freeze_mlps: bool = False,
    only_correct: bool | None = None,
    controls: int = 10,
    batch_size: int = 16,
    max_tokens: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> PathPatching:
    """Replace each head's z at ``position`` by the source run's, let only ``receivers`` feel it, and read the answer.

    Options: :class:`probes.paths.finding.PathOptions`.
    """

def retrieval_heads(
    subject: Any,
    trials: Sequence[Trial],
    *,
    max_new_tokens: int = 50,
    keep_above: float = 0.5,
    threshold: float = 0.1,
    decoys: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> RetrievalHeads:
    """Which heads of a model, or of both models of a pair, copy the needle into their answer.

    Options: :class:`probes.needles.heads.RetrievalOptions`.
    """

def switching_curve(
    subject: Any,
    prompts: Any,
    behaviour: Annotated[_Behaviour, As("behaviour")],
    ranking: Annotated[ExpertMap | Sequence[str], As("experts")],
    counts: Sequence[int] = (1, 2, 4, 8),
    mode: Mode = "replace",
    *,
    max_new_tokens: int = 32,
    controls: int = 10,
    draws: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> SwitchingCurve:
    """Generate with the first n experts of ``ranking`` switched, for every n of ``counts``, and score the responses.

    Options: :class:`probes.experts.switching.SwitchOptions`.
    """
