# Written by .ci/stubs.py (make stubs) from the package's table of lazy names; do not edit.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from probes.against_null_adapters import AgainstNulls as AgainstNulls
from probes.against_null_adapters import against_nulls as against_nulls
from probes.anatomy.attachment_reading import part_effects as part_effects
from probes.anatomy.attachment_reading import realised_prompts as realised_prompts
from probes.anatomy.attachment_reading import side_shares as side_shares
from probes.anatomy.decomposed_prompt import DecomposedPrompt as DecomposedPrompt
from probes.anatomy.decomposed_prompt import decomposed_prompt as decomposed_prompt
from probes.anatomy.input_side import InputSide as InputSide
from probes.anatomy.input_spans import InputSpans as InputSpans
from probes.anatomy.likeness import LoraLikeness as LoraLikeness
from probes.anatomy.likeness import lora_likeness as lora_likeness
from probes.anatomy.lora_blocks import LoraBlocks as LoraBlocks
from probes.anatomy.panel import AdapterPanel as AdapterPanel
from probes.anatomy.prefix import PrefixGates as PrefixGates
from probes.anatomy.prefix import prefix_gates as prefix_gates
from probes.anatomy.random_bases import RandomBases as RandomBases
from probes.anatomy.random_bases import random_bases as random_bases
from probes.anatomy.update import UpdateAnatomy as UpdateAnatomy
from probes.anatomy.update import update_anatomy as update_anatomy
from probes.anatomy.virtual_tokens import VirtualTokenMap as VirtualTokenMap
from probes.anatomy.virtual_tokens import virtual_tokens as virtual_tokens
from probes.answer_changes import AnswerChanges as AnswerChanges
from probes.attending.awareness import ContextAwareness as ContextAwareness
from probes.attending.confidence import AttentionConfidence as AttentionConfidence
from probes.attending.pattern_types import PatternTypes as PatternTypes
from probes.attending.targets import TargetAttention as TargetAttention
from probes.attending.tuning import AttentionTuning as AttentionTuning
from probes.attending.tuning import Edit
from probes.attributes.dial_result import IntensityDial as IntensityDial
from probes.attributes.directions import AttributeDirections as AttributeDirections
from probes.attributes.intersection import AttributeIntersection as AttributeIntersection
from probes.attributes.pplm import PlugAndPlay as PlugAndPlay
from probes.attributes.style import StyleTransfer as StyleTransfer
from probes.attributes.subjects import SubjectOffset as SubjectOffset
from probes.attributes.switch import PlantedSwitch as PlantedSwitch
from probes.attributes.token_guidance import TokenGuidance as TokenGuidance
from probes.audits.auditing import Audit as Audit
from probes.audits.auditing import audit as audit
from probes.comparison import Comparison as Comparison
from probes.comparison import compare as compare
from probes.concepts.dictionary import Dictionary as Dictionary
from probes.concepts.probe import ConceptDirections as ConceptDirections
from probes.concepts.probe import concept_directions as concept_directions
from probes.decoding.focused import FocusedPrefix as FocusedPrefix
from probes.decoding.generations import ContrastiveGenerations as ContrastiveGenerations
from probes.decoding.guidance import GuidanceFront as GuidanceFront
from probes.decoding.movement import ProbabilityMovement as ProbabilityMovement
from probes.decoding.switching import EntropySwitching as EntropySwitching
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
from probes.editing.sites import EditSites as EditSites
from probes.effects.answers import Measure
from probes.effects.fault_tokens import FaultTokens as FaultTokens
from probes.effects.panel import EffectPanel as EffectPanel
from probes.effects.pollution import Pollution as Pollution
from probes.effects.undoing import Undoing as Undoing
from probes.experts.counting import Excluded
from probes.experts.domains import DomainExperts as DomainExperts
from probes.experts.labels import Labeller
from probes.experts.mapping import ExpertMap as ExpertMap
from probes.experts.sets import ExpertSets as ExpertSets
from probes.experts.switching import Behaviour as _Behaviour
from probes.experts.switching import Mode
from probes.experts.switching import SwitchingCurve as SwitchingCurve
from probes.gates.fitting import GateFit as GateFit
from probes.grafting.overlap import MaskOverlap as MaskOverlap
from probes.grafting.overlap import mask_overlap as mask_overlap
from probes.grafting.regions import Level
from probes.grafting.result import GraftResult as GraftResult
from probes.grafting.search import Method
from probes.head_writes import HeadWords as HeadWords
from probes.influence.result import RowInfluence as RowInfluence
from probes.influence.retraining import Retraining as Retraining
from probes.knob.find import LayerChoice
from probes.knob.find import Setup as KnobSetup
from probes.knob.result import Knob as Knob
from probes.knob.subspace import Training as KnobTraining
from probes.lens import LogitLens as LogitLens
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
from probes.partial_updates.blocks import BlockFlips as BlockFlips
from probes.partial_updates.blocks import Cut
from probes.partial_updates.scale_sweep import ScaleSweep as ScaleSweep
from probes.partial_updates.split import UpdateParts as UpdateParts
from probes.patches.result import Patching as Patching
from probes.paths.circuit_result import CircuitTest as CircuitTest
from probes.paths.cross_model import CrossPatching as CrossPatching
from probes.paths.groups import Heads
from probes.paths.places import Place
from probes.paths.result import PathPatching as PathPatching
from probes.random_recipes import stand_ins as stand_ins
from probes.representation.attribute_suite import AttributeSuite as AttributeSuite
from probes.representation.attribute_suite import attribute_suite as attribute_suite
from probes.representation.classifier import Kind
from probes.representation.concept_drift import ConceptDrift as ConceptDrift
from probes.representation.cross_task import CrossTask as CrossTask
from probes.representation.curved_path import CurvedPath as CurvedPath
from probes.representation.curved_path import curved_path as curved_path
from probes.representation.direction_transfer import DirectionTransfer as DirectionTransfer
from probes.representation.direction_transfer import direction_transfer as direction_transfer
from probes.representation.layer_views import LayerViews as LayerViews
from probes.representation.layer_views import layer_views as layer_views
from probes.representation.neurons import NeuronConcepts as NeuronConcepts
from probes.representation.neurons import concept_neurons as concept_neurons
from probes.representation.separability import CellShifts as CellShifts
from probes.representation.separability import class_separability as class_separability
from probes.representation.separability import procrustes_drift as procrustes_drift
from probes.representation.set_algebra import SetAlgebra as SetAlgebra
from probes.representation.set_algebra import set_algebra as set_algebra
from probes.representation.suite import ProbeSuite as ProbeSuite
from probes.representation.suite import probe_suite as probe_suite
from probes.results import ProbeResult as ProbeResult
from probes.retention.erasure import ErasureVerdict as ErasureVerdict
from probes.retention.format_spread import FormatSpread as FormatSpread
from probes.retention.inherent_limits import InherentLimits as InherentLimits
from probes.routing.mapping import Routing
from probes.routing.mapping import RoutingMap as RoutingMap
from probes.selection import HeadSelection as HeadSelection
from probes.selection_scores.token_relevance import TokenRelevance as TokenRelevance
from probes.selection_scores.trial import SelectionTrial as SelectionTrial
from probes.selection_scores.tuning_trial import TuningTrial as TuningTrial
from probes.series.adapter_bank import AdapterBank as AdapterBank
from probes.series.churn import MaskChurn as MaskChurn
from probes.series.churn import mask_churn as mask_churn
from probes.series.collisions import AbilityCollisions as AbilityCollisions
from probes.series.composition import SparseComposition as SparseComposition
from probes.series.contexts import ContextUpdates as ContextUpdates
from probes.series.curve import SeriesCurve as SeriesCurve
from probes.series.factor_averages import FactorAverages as FactorAverages
from probes.series.factor_averages import factor_averages as factor_averages
from probes.series.learned_scaling import LearnedScaling as LearnedScaling
from probes.series.lora_chain import LoraChain as LoraChain
from probes.series.lora_chain import lora_chain as lora_chain
from probes.series.merges import MergeTest as MergeTest
from probes.series.online_offline import OnlineOffline as OnlineOffline
from probes.series.profile import SeriesProfile as SeriesProfile
from probes.series.profile import series_profile as series_profile
from probes.series.reconstruction import Reconstruction as Reconstruction
from probes.series.reconstruction import adapter_reconstruction as adapter_reconstruction
from probes.series.shared_part import SharedPart as SharedPart
from probes.series.shared_part import shared_part as shared_part
from probes.series.synergy import MergeSynergy as MergeSynergy
from probes.series.task_vectors import task_vectors as task_vectors
from probes.series.twin import TwinMergeTest as TwinMergeTest
from probes.sparsity.neurons import Rule
from probes.sparsity.neurons import SparsityCurve as SparsityCurve
from probes.sparsity.paths import LayerPaths as LayerPaths
from probes.token_ranks import TokenShift as TokenShift
from probes.turning.comparing import WaysToTurn as WaysToTurn
from probes.turning.comparing import ways_to_turn as ways_to_turn
from probes.weights.delta import weight_delta as weight_delta
from probes.weights.forms import ChangeForms as ChangeForms
from probes.weights.forms import change_forms as change_forms
from probes.weights.rank_map import RankMap as RankMap
from probes.weights.rank_map import rank_map as rank_map
from probes.weights.result import WeightDelta as WeightDelta
from workbench.behaviour.scorers import Behaviour, Score
from workbench.engine.positions import PositionSpec, Where
from workbench.method_options import As, Within
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
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
    "task_vectors",
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

def ability_collisions(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    skills: str = "skill",
    density: Annotated[float, Within(1e-06, 1)] = 0.02,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AbilityCollisions:
    """Score every member of a series on every skill beside the base, and compare members' updates two by two."""

def adapter_bank(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    shots: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AdapterBank:
    """Ask every member every task; ``shots`` prompts of a task (whole groups) pick, the others report."""

def adapter_panel(
    pair: Any,
    prompts: Any,
    *,
    ablate: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AdapterPanel:
    """dh = output with the adapter - output without it, on the tuned model's own inputs, for any kind of adapter
    layer."""

def answers(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 16,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AnswerChanges:
    """Greedy answers of both models on the same prompts, and what is new in the tuned model's."""

def attention_confidence(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layers: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AttentionConfidence:
    """Compare attention of base and tuned model on the same prompts: entropy per head, and who gained attention."""

def attention_tuning(
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    edit: Edit = "first",
    layers: Any = None,
    share: float = 0.4,
    threshold: float = 0.1,
    controls: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AttentionTuning:
    """Profile every head by changing its attention alone, choose heads and a factor, and report on held-out prompts."""

def attribute_directions(
    subject: Any,
    prompts: Prompts | Sequence[object],
    attributes: list[str],
    *,
    layer: int | float | str = 0.5,
    penalty: float = 1.0,
    strength: float = 0.2,
    controls: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AttributeDirections:
    """Train one direction per attribute on mean states of texts, with a penalty on their cosines, and test leakage."""

def attribute_intersection(
    subject: Any,
    prompts: Prompts | Sequence[object],
    attributes: list[str],
    *,
    layer: int | float | str = 0.5,
    strength: float = 1.0,
    samples: int = 6,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> AttributeIntersection:
    """Sample texts, and steer to the point where the clouds of their attributes meet."""

def block_flips(
    pair: Any,
    prompts: Any,
    *,
    cut: Cut = "part",
    retain: Annotated[Any, As("prompts")] = None,
    threshold: Annotated[float, Within(0, 1)] = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> BlockFlips:
    """Switch each block of the update off, and on, with everything else as it is, and ask the prompts."""

def calibration_counter_test(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    sparsities: Annotated[Sequence[float], Within(0, 1)] = (0.5, 0.9),
    reprogram: bool = True,
    tokens: int = 4,
    epochs: int | float = 5,
    folds: int = 5,
    ridge: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Expected calibration error of dense and magnitude-pruned models, read by a linear probe and by a soft prompt."""

def certainty_split(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    certainty: Literal["next_token", "critique"] = "next_token",
    yes: str = "yes",
    no: str = "no",
    domains: str = "",
    refusal: str = "",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Refusals on questions that the base knows and does not, and average precision of certainty (Zhang et al.
    2024)."""

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
    limit: int | None = None,
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
    limit: int | None = None,
) -> CrossPatching:
    """Copy z of ``heads`` from the tuned model's run into the base's on the same prompts, and the reverse.

    Options: :class:`probes.paths.cross_model.CrossOptions`.
    """

def code_similarity(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    dictionary: Annotated[Dictionary | str | Path, As("file")],
    layer: int | float | None = None,
    pool: Literal["max", "mean"] = "max",
    always_on: Annotated[float, Within(0, 1)] = 0.9,
    match: str | None = None,
    near: str | None = None,
    k: int = 5,
    batch_size: int = 16,
    controls: int = 20,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> RowInfluence:
    """Rank training rows by the generalised Jaccard similarity of their dictionary codes to the queries' (MONA)."""

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

def concept_drift(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layers: Any = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ConceptDrift:
    """Compare prompts that name a concept with the same prompts that name its class, in both models."""

def concept_words(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    words: Sequence[str] = (),
    sizes: Sequence[int] = (),
    labels: str = "label",
    layer: int | float = -1,
    draws: int = 20,
    folds: int = 5,
    ridge: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Accuracy of a linear probe that sees only how far a state points to each of some words (Yan et al. 2023)."""

def constraint_satisfaction(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    column: str = "constraints",
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Share of a prompt's constraints that each model's text meets, by how many there are (Yun et al. 2025)."""

def context_awareness(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layer: int | float | str = 0.5,
    alphas: list[float] | None = None,
    threshold: Annotated[float, Within(0, 1)] = 0.6,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ContextAwareness:
    """Measure how much answers attend to the user's words, for both models, with the chat template on and off."""

def context_preference(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    head: Annotated[str | Path | None, As("file")] = None,
    tuned_head: Annotated[str | Path | None, As("file")] = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Compare the reward of both answers in each row's context and in the contrast's, where the other one is right."""

def context_updates(
    pair: Any,
    prompts: Any,
    *,
    contexts: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    threshold: Annotated[float, Within(-1, 1)] = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ContextUpdates:
    """Compare base + update with the base that reads the context before the prompt, for every adapter."""

def context_use(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    context: str = "context",
    template: str = ...,
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The same questions without context, with the gold one, and with another row's (Barnett et al. 2024)."""

def contrastive_generations(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    samples: int = 10,
    plausibility: Annotated[float, Within(0, 1)] = 0.1,
    temperature: float = 1.0,
    behaviour: str | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ContrastiveGenerations:
    """Sample texts from log p_tuned - log p_base, over words with p_tuned >= plausibility * max p_tuned (CGE)."""

def cross_task(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    tasks: str = "task",
    shots: int = 4,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> CrossTask:
    """Gain of every task's examples on every other task's questions, against the similarity of the tasks'
    activations."""

def demonstration_utility(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    within: Literal["base", "tuned"] = "base",
    match: str | None = None,
    near: str | None = None,
    k: int = 5,
    batch_size: int = 16,
    controls: int = 8,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> RowInfluence:
    """Rank training rows by the pairwise utility of DELIFT: how much nearer a query's answer gets with the row
    shown."""

def deployment_gap(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    precisions: Sequence[str] = ("bfloat16", "int8", "int4"),
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The tuned model in every precision, its adapter merged and not, against itself as it was loaded."""

def domain_experts(
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    exclude: Literal["none", "special", "template"] = "special",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> DomainExperts:
    """Count which experts the tokens of each domain select, and test each against the other domains."""

def early_signs(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    runs: Sequence[str] = (),
    early: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Gradient norm and loss over the first steps of each run, against the run's final change and answers (Pareja et
    al. 2024)."""

def edge_attribution(
    subject: Any,
    prompts: Any,
    *,
    method: Literal["ig", "exact"] = "ig",
    steps: int = 5,
    curve: bool = False,
    kept: int = 500,
    least: Annotated[float, Within(0, 1)] = 0.02,
    controls: int = 3,
    batch_size: int = 8,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EdgeAttribution:
    """Score every edge between each prompt and its contrast, by integrated gradients; the metric is logit_diff."""

def edit_sites(
    subject: Any,
    prompts: Any,
    *,
    paraphrases: Annotated[Any, As("prompts")] = None,
    locality: Annotated[Any, As("prompts")] = None,
    general: Annotated[Any, As("prompts")] = None,
    neutral: Annotated[Any, As("prompts")] = None,
    keep: Annotated[Any, As("prompts")] = None,
    locality_tokens: int = 1,
    layers: Any = None,
    modules: Sequence[str] = ("mlp.down_proj",),
    order: Literal["breadth", "depth"] = "breadth",
    epochs: int = 20,
    early: bool = True,
    learning_rate: float = 0.001,
    batch_size: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EditSites:
    """Write the facts of ``prompts`` into each matrix alone, measure, and put the matrix back."""

def elicitation_curve(
    subject: Any,
    prompts: Prompts | Sequence[Any],
    *,
    strong: Annotated[Any, As("prompts")],
    weak: Annotated[Any, As("prompts")],
    counts: Sequence[int] = (8, 32, 128),
    layer: int | float | str = 0.75,
    rank: int = 8,
    epochs: int = 3,
    learning_rate: Annotated[float, Within(0, None)] = 0.001,
    train_batch_size: int = 8,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Train copies on few strong labels, on all weak ones, and on weak and then few strong ones (Mallen et al.
    2024)."""

def entropy_switching(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    quantiles: list[float] | None = None,
    hysteresis: Annotated[float, Within(0, 1)] = 0.5,
    window: int = 4,
    behaviour: str | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EntropySwitching:
    """The base writes, and the tuned model takes over while the base's entropy over the last tokens is high."""

def erased_or_displaced(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    shots: Annotated[int, Within(0, None)] = 4,
    bank: Sequence[str] = ...,
    codes: Sequence[str] = ("leetspeak", "pig latin"),
    soft_tokens: Annotated[int, Within(0, None)] = 0,
    margin: float = 0.1,
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ErasureVerdict:
    """Ask what the base could and the tuned model no longer does by other routes, and say: kept, displaced or lost."""

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
    limit: int | None = None,
) -> ExpertMap:
    """Which experts the model uses more for prompts of the ``target`` class of behaviour than for the others.

    Options: :class:`probes.experts.mapping.MapOptions`.
    """

def expert_sets(
    subject: Any,
    prompts: Prompts | Sequence[object],
    behaviour: Annotated[str | Behaviour, As("behaviour")] = "refusal",
    *,
    size: int = 3,
    tried: int = 16,
    mode: Literal["replace", "drop", "drop_renorm"] = "drop_renorm",
    controls: int = 10,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ExpertSets:
    """Search a small set of experts greedily by the behaviour that is left when they are off."""

def fault_tokens(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> FaultTokens:
    """Read every right answer with both models, and split how far each token moved by whether the faulty answer has
    it."""

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

def find_knob(
    pair: Any,
    prompts: Prompts | Sequence[Any],
    *,
    layers: LayerChoice = "search",
    training: KnobTraining | None = None,
    setup: KnobSetup | None = None,
    others: Mapping[str, AdaptedModel] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Knob:
    """The direction at the last token whose coordinate decides between two intents (Minder, Du et al. 2024)."""

def fit_gate(
    subject: Any,
    prompts: Any,
    *,
    label: str | None = None,
    neutral: Annotated[Any, As("prompts")] = None,
    layers: Any = None,
    reach: Literal["prompt", "onward", "token"] | str = "prompt",
    most_false: Annotated[float, Within(0, 1)] = 0.01,
    controls: int = 10,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> GateFit:
    """Fit a gate on labelled prompts: Fisher's discriminant, and a threshold that neutral text rarely passes."""

def focused_prefix(
    subject: Any,
    prompts: Prompts | Sequence[object],
    wanted: list[str],
    general: str,
    behaviours: list[str],
    *,
    asked_for: int = 1,
    alphas: list[float] | None = None,
    plausibility: Annotated[float, Within(0, 1)] = 0.1,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> FocusedPrefix:
    """Write with logits alpha * specific - (alpha - 1) * general, each read behind a prefix of its own."""

def format_spread(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    formats: int = 12,
    budget: int = 400,
    batch: int = 8,
    shots: Annotated[int, Within(0, None)] = 0,
    atomic: bool = False,
    separability: bool = False,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> FormatSpread:
    """Spread of accuracy over formats that mean the same, of each model (Sclar et al. 2024)."""

def generalization_levels(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    training: Annotated[Any, As("prompts")],
    task: str = "task",
    category: str = "category",
    language: str = "",
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The change by the level at which each prompt is new to the training (Iyer et al. 2022)."""

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
    limit: int | None = None,
) -> GraftResult:
    """Find the weights of the tuned model that, put into the base, carry the task of ``prompts``.

    Options: :class:`probes.grafting.search.Settings`.
    """

def guidance_front(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    behaviour: Annotated[str | Behaviour, As("behaviour")] = "refusal",
    *,
    weak: list[float] | None = None,
    strengths: list[float] | None = None,
    kept: Annotated[Any, As("prompts")] = None,
    plausibility: Annotated[float, Within(0, 1)] = 0.1,
    samples: int = 2,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> GuidanceFront:
    """Write with logits of tuned + s * (tuned - weak), where weak has the share lambda of tuning's update."""

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
    limit: int | None = None,
) -> HeadSelection:
    """Train one scaling per entry of every head's z for the prompts' ``answer`` and rank heads by its norm.

    Options: :class:`probes.selection.SelectionOptions`.
    """

def head_words(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    layer: int,
    head: int,
    *,
    top: int = 8,
    seed: int = 0,
    limit: int | None = None,
) -> HeadWords:
    """Read one head's write at the last token of each prompt, in both models."""

def in_context_activations(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    shots: int = 4,
    sites: Sequence[str] = ("attn_out", "resid_post"),
    layers: Any = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> CellShifts:
    """Cosine, at the last token, of what tuning adds (tuned - base) and what examples add (base behind them - base)."""

def inherent_limits(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    tasks: str = "task",
    shots: int = 4,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> InherentLimits:
    """The tuned model's zero-shot score of every task against the base's few-shot score (Bigoulaeva et al. 2025)."""

def input_side(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> InputSide:
    """Hand the base the tuned model's inputs, and follow the change up through the layers."""

def input_spans(
    pair: Any,
    prompts: Any,
    *,
    draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> InputSpans:
    """Project the inputs of every changed linear map onto the row span of its update."""

def instruction_attribution(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    instruction: str = "instruction",
    writer: str = "tuned",
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Attribution density of the instruction's words, gradient times input embedding (Wu et al. 2024)."""

def intensity_dial(
    subject: Any,
    prompts: Prompts | Sequence[object],
    attribute: str = "length",
    *,
    layers: Any = 0.5,
    reach: float = 0.4,
    dearest: float = 3.0,
    samples: int = 6,
    off_target: list[str] | None = None,
    controls: int = 10,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> IntensityDial:
    """Find an attribute's direction in the model's own samples, calibrate a dial on it, and measure the dial."""

def language_transfer(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    source: str,
    language: str = "language",
    layer: int | float | str = 0.5,
    strength: float = 1.0,
    controls: Annotated[int, Within(10, None)] = 10,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The change of every language, and that of the base when the source language's vector is added."""

def layer_paths(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    budget: float = 0.7,
    small_cost: float = 0.5,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> LayerPaths:
    """Search each sample's best path on which every layer is skipped (cost 0), the base's, or the tuned model's (1)."""

def learned_scaling(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    epochs: int = 10,
    lr: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> LearnedScaling:
    """Learn base + sum of coefficient * update on half of the prompts; the other half reports."""

def logit_lens(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    layers: Any = None,
    positions: PositionSpec | Where = "all",
    top: int = 5,
    shown: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> LogitLens:
    """Read every layer's residual through the model's own final norm, unembedding and soft-caps."""

def lora_blocks(
    pair: Any,
    prompts: Prompts | Sequence[object],
    *,
    blocks: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> LoraBlocks:
    """Split A (its rows) and B (its columns) in blocks of the rank, and switch each block off in all modules."""

def many_shot_curve(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    shots: Annotated[Sequence[int], Within(0, None)] = (0, 1, 2, 4, 8),
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Accuracy of both models behind 0, 1, 2, ... answered examples, and what examples add (He et al. 2025)."""

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

def merge_synergy(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    sizes: Sequence[str] = (),
    rule: Literal["uniform", "stock", "ties"] = "uniform",
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> MergeSynergy:
    """Merge fine-tunes of one base and compare with the mean of the parents, at one size or several."""

def merge_test(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    rules: Sequence[str] = ("uniform", "greedy", "stock", "ties"),
    density: Annotated[float, Within(1e-06, 1)] = 0.2,
    points: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> MergeTest:
    """Merge ``checkpoints`` and the tuned model by each rule and ask all models the same held-out prompts."""

def online_offline(
    pair: Any,
    prompts: Any,
    *,
    offline: str = "",
    draws: int = 3,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> OnlineOffline:
    """Compare the pair's tuned model (online) with the average of its past (offline), and ask both together."""

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
    limit: int | None = None,
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
    limit: int | None = None,
) -> PathPatching:
    """Replace each head's z at ``position`` by the source run's, let only ``receivers`` feel it, and read the answer.

    Options: :class:`probes.paths.finding.PathOptions`.
    """

def pattern_types(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layers: Any = None,
    block: int = 16,
    threshold: Annotated[float, Within(0, 1)] = 0.1,
    coverage: Annotated[float, Within(0.01, 1)] = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> PatternTypes:
    """Type every head by the last block of queries, and count what its sparse pattern must compute."""

def phrasing_robustness(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    items: str = "item",
    phrasing: str = "phrasing",
    layer: int | float = 0.75,
    prefix_tokens: Annotated[int, Within(0, None)] = 0,
    epochs: int | float = 5,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The same items under observed and unobserved instructions (Sun et al. 2024)."""

def planted_switch(
    subject: Any,
    prompts: Prompts | Sequence[Any],
    *,
    levers: str = "",
    layers: Any = (0.25, 0.5, 0.75),
    strength: float = 1.0,
    controls: Annotated[int, Within(10, None)] = 10,
    metric: Measure = "preferred",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> PlantedSwitch:
    """Find what the switch moves, add it where the switch is absent, and take it out where it is present."""

def pollution(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    wanted: list[str] | None = None,
    others: list[str] | None = None,
    samples: int = 4,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Pollution:
    """Hold the tuned model's texts against the base's as the reference path."""

def position_effect(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    context: str = "context",
    among: int = 4,
    places: int = 3,
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The gold passage first, in the middle and last among passages of other questions (lost in the middle, Liu
    2023)."""

def pplm(
    subject: Any,
    prompts: Prompts | Sequence[object],
    bag: list[str],
    *,
    sizes: list[float] | None = None,
    steps: int = 3,
    gamma: float = 1.5,
    kl: float = 0.01,
    fusion: Annotated[float, Within(0, 1)] = 0.9,
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> PlugAndPlay:
    """Before each token, move all keys and values ``steps`` times along the gradient of log p(bag), then write."""

def preference_movement(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    samples: Annotated[int, Within(0, None)] = 4,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Change in log-probability (nats, whole answer) of chosen and rejected answers, and of the base's own samples."""

def probability_movement(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    bins: int = 4,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ProbabilityMovement:
    """Read the same texts with both models and split how far each next-word distribution moved by the base's
    entropy."""

def question_dependency(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    skip: Annotated[int, Within(0, None)] = 1,
    most: int = 24,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Attribution of the answer's tokens to the question, and its mean distance, for base (or plain SFT) and tuned."""

def representation_gap(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    shots: int = 8,
    layers: Any = None,
    kind: Kind = "linear",
    metric: Measure = "accuracy",
    folds: int = 5,
    ridge: float = 1.0,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Probe ceiling, in-context accuracy and tuned accuracy on one classification task (Bhatia et al. 2023, TART)."""

def retrain_without(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    influence: Annotated[RowInfluence | str | Path, As("file")],
    drop: int = 10,
    rank: int = 8,
    modules: Sequence[str] = (),
    epochs: int = 3,
    batch_size: int = 8,
    learning_rate: Annotated[float, Within(0, None)] = 0.001,
    random_draws: int = 3,
    trainings: int = 1,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Retraining:
    """Train a new LoRA on the base with all rows, without the ``drop`` rows of highest influence, and without random
    rows, and compare the queries' loss."""

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

def routing_map(
    model: Any,
    prompts: Prompts | Sequence[object],
    adapters: list[str],
    *,
    rule: Routing = "phatgoose",
    top_k: int = 2,
    steps: int = 100,
    lr: float = 0.01,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> RoutingMap:
    """Train a router over saved LoRAs on one half of the prompts; say where it sends the other half, and how well."""

def row_influence(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    dim: int = 8192,
    optimiser: Literal["adam", "sgd"] = "adam",
    layers: Any = None,
    modules: Sequence[str] = (),
    direction: Annotated[str | Path | None, As("file")] = None,
    checkpoints: Sequence[str] = (),
    rates: Sequence[float] = (),
    store: str | None = None,
    match: str | None = None,
    near: str | None = None,
    subtasks: str | None = None,
    k: int = 5,
    embeddings: bool = True,
    batch_size: int = 8,
    controls: int = 20,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> RowInfluence:
    """Rank training rows by how much a step on each lowers the loss of the queries (LESS, Xia et al. 2024)."""

def sample_efficiency(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    training: Annotated[Any, As("prompts")],
    counts: Sequence[int] = (8, 32, 128),
    category: str = "",
    rank: int = 8,
    epochs: int = 3,
    learning_rate: Annotated[float, Within(0, None)] = 0.001,
    train_batch_size: int = 8,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Train copies of base and tuned model on the same few rows and compare them on test rows (Gupta et al. 2023)."""

def scale_sweep(
    pair: Any,
    prompts: Any,
    *,
    scales: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
    shape: Literal["flat", "lines"] = "flat",
    retain: Annotated[Any, As("prompts")] = None,
    margin: float = 0.05,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> ScaleSweep:
    """Ask base + t * (tuned - base) the trained task and what the base could do, for every scale t."""

def scaling_law(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    checkpoints: Sequence[str] = (),
    sizes: Sequence[float] = (),
    draws: int = ...,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Fit the rectified scaling law L(D) = B / (D0 + D^beta) + E to fine-tunes on D rows (Lin et al. 2024)."""

def selection_trial(
    pair: Any,
    prompts: Any,
    *,
    scores: Sequence[str] = (
        "change",
        "first_order",
        "gradient",
        "small_weights",
        "large_weights",
        "reduced_magnitude",
    ),
    share: Annotated[float, Within(1e-06, 0.9)] = 0.05,
    retain: Annotated[Any, As("prompts")] = None,
    draws: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> SelectionTrial:
    """Select ``share`` of every changed tensor by each score, and test the selections on held-out prompts."""

def self_correction(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    challenge: str = ...,
    neutral: str = ...,
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Accuracy before and after a challenge, split into confidence and critique (Yang et al. 2024)."""

def series_curve(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    lens: bool = False,
    trained_on: Annotated[Mapping[str, Any] | None, As("prompt sets")] = None,
    draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> SeriesCurve:
    """Right answers, KL to the base and to the final model, and what is retained, for each member of a series."""

def skill_profile(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    skills: str = "skill",
    kinds: str = "",
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The change of every skill with its interval, and whether skills changed differently at all."""

def soft_prompt_split(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    others: Annotated[Any, As("prompts")] = None,
    checkpoints: Sequence[str] = (),
    shots: int = 2,
    tokens: int = 8,
    epochs: int | float = 5,
    learning_rate: float = 0.01,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Soft prompt on and off, weights old and new: score on the tuned task and in-context score on other tasks."""

def source_trust(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    tags: str = "tag",
    items: str = "item",
    definitions: Annotated[Any, As("prompts")] = None,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The internalisation gap between tags, and the alignment of definitions' gradients with the questions'
    (Krasheninnikov et al. 2023)."""

def sparse_composition(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    densities: Sequence[float] = (0.01, 0.1, 1.0),
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> SparseComposition:
    """Add the largest entries of the tuned model's update and of one other's, at several densities."""

def sparsity_curve(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    rule: Rule = "cats",
    sparsities: list[float] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> SparsityCurve:
    """Calibrate thresholds on one half of the prompts and report firing neurons and answers on the other."""

def spurious_attributes(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    attributes: Sequence[str] = (),
    layer: int | float = 0.5,
    metric: Measure = "accuracy",
    controls: int = 10,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Score where an attribute agrees with the answer less where it does not, and with the attribute's direction
    shielded (Tian et al. 2025, for language models)."""

def subject_offset(
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    layer: int | float | str = 0.25,
    strength: float = 1.0,
    controls: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> SubjectOffset:
    """Find an attribute's direction at a subject's tokens from minimal pairs, and add it there or everywhere."""

def switching_curve(
    subject: Any,
    prompts: Any,
    behaviour: Annotated[_Behaviour, As("behaviour")],
    ranking: Annotated[ExpertMap | Sequence[str], As("experts")],
    counts: Sequence[int] = (1, 2, 4, 8),
    mode: Mode = "drop_renorm",
    *,
    max_new_tokens: int = 32,
    controls: int = 10,
    draws: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> SwitchingCurve:
    """Generate with the first n experts of ``ranking`` switched, for every n of ``counts``, and score the responses.

    Options: :class:`probes.experts.switching.SwitchOptions`.
    """

def target_attention(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    target: str = "target",
    layers: Any = None,
    draws: int = 20,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> TargetAttention:
    """Attention of the last token to each row's own target, for every head of both models."""

def template_effect(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    context: str = "",
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Base and tuned with the chat template on and off: four scores, both effects, and their interaction."""

def token_guidance(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    behaviour: Annotated[str | Behaviour, As("behaviour")] = "refusal",
    *,
    strengths: list[float] | None = None,
    kept: Annotated[Any, As("prompts")] = None,
    samples: int = 4,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> TokenGuidance:
    """Learn from the base's own texts which tokens go with the attribute, and add their scores to its logits."""

def token_relevance(
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    share: Annotated[float, Within(0, 1)] = 0.5,
    draws: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> TokenRelevance:
    """Rank a prompt's tokens by the attention of its last one, over all heads and layers, and leave out the rest."""

def token_shift(
    pair: Any,
    prompts: Prompts | Sequence[Any],
    *,
    base_prompts: Prompts | Sequence[Any] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> TokenShift:
    """Each model continues the prompts greedily and the other ranks every token written."""

def tool_errors(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    calls: str = "call",
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Share of replies with each kind of mistake (Ye et al. 2024): no call, broken JSON, another tool, an argument
    missing, invented or wrong."""

def tuning_trial(
    subject: Any,
    prompts: Any,
    *,
    rules: Sequence[str] = ("reduced_magnitude", "small_weights", "fisher", "half", "budget"),
    share: Annotated[float, Within(1e-06, 1)] = 0.05,
    retain: Annotated[Any, As("prompts")] = None,
    refresh: int = 0,
    epochs: int = 3,
    learning_rate: float = 0.001,
    batch_size: int = 8,
    draws: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> TuningTrial:
    """Train the base on half of the prompts (whole groups) in each selection, ask the other half, and undo it."""

def twin_merge(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    tasks: Sequence[str] = (),
    rank: int = 8,
    layer: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> TwinMergeTest:
    """Merge ``checkpoints`` and the tuned model, fit the router on half of the prompts, judge on the other half."""

def two_axes(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    axis: str = "axis",
    side: str = "side",
    scales: Sequence[float] = (-1.0, 0.5),
    layer: int | float | str = 0.5,
    controls: Annotated[int, Within(10, None)] = 10,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """Place base and tuned on both axes, the base with so much of the update, and the tuned model without the slant."""

def undoing(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    texts: Annotated[Any, As("prompts")],
    instructions: Annotated[Any, As("prompts")] = None,
    rank: int = 8,
    epochs: int = 3,
    learning_rate: Annotated[float, Within(0, None)] = 0.001,
    batch_size: int = 8,
    draws: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Undoing:
    """Train a LoRA on a copy of the tuned model with the next-word loss on raw texts, and ask the instructions
    again."""

def update_parts(
    pair: Any,
    prompts: Any,
    *,
    parts: Sequence[str] = ("whole", "low_rank", "sparse", "both", "inside", "outside"),
    rank: int = 8,
    share: Annotated[float, Within(1e-06, 1)] = 0.01,
    k: int = 64,
    retain: Annotated[Any, As("prompts")] = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> UpdateParts:
    """Split the update of every matrix and judge each part on the base."""

def visited_forgetting(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    training: Annotated[Any, As("prompts")] = None,
    column: str = "visited",
    near: float = 0.5,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> EffectPanel:
    """The change on prompts that tuning visited, and on those that it did not (Wolczyk et al. 2024)."""

def writing_style(
    subject: Any,
    prompts: Prompts | Sequence[object],
    style: Annotated[Any, As("prompts")] = None,
    *,
    drafts: int = 8,
    layer: int | float | str = 0.5,
    strengths: list[float] | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    limit: int | None = None,
) -> StyleTransfer:
    """Embed samples of a style by the model's own states, then choose the nearest draft, or steer towards them."""
