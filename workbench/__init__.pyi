# Written by .ci/stubs.py (make stubs) from the package's table of lazy names; do not edit.

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy

from workbench.behaviour.by_certainty import PartedDiff
from workbench.behaviour.contrast import contrast as contrast
from workbench.behaviour.critique import self_critique as self_critique
from workbench.behaviour.diff import Recipes
from workbench.behaviour.dose import DoseResponse
from workbench.behaviour.result import BehaviourDiff
from workbench.behaviour.scope import Changed, ScopePanel
from workbench.behaviour.scorers import Behaviour, Score
from workbench.behaviour.subject import AppliedRecipe
from workbench.behaviour.texts import TextRule
from workbench.cluster.splitting import on_ray as on_ray
from workbench.engine.sites import Site as Site
from workbench.errors import UserError as UserError
from workbench.method_options import As
from workbench.models.adapted import AdaptedModel as AdaptedModel
from workbench.models.pair import ModelPair as ModelPair
from workbench.models.pair import load_one as load_model
from workbench.models.pair import load_pair as load_pair
from workbench.models.series import ModelSeries as ModelSeries
from workbench.models.series import load_series as load_series
from workbench.progress import Progress
from workbench.prompts.collection import Prompts as Prompts
from workbench.recording.record_pair import record as record
from workbench.recording.recording import Recording as Recording
from workbench.vllm.route import Executor
from workbench.vllm.routing import on_vllm as on_vllm

__version__: str

__all__ = [
    "AdaptedModel",
    "ModelPair",
    "ModelSeries",
    "Prompts",
    "Recording",
    "Site",
    "UserError",
    "behaviour_diff",
    "contrast",
    "dose_response",
    "known_unknown",
    "load_model",
    "load_pair",
    "load_series",
    "on_ray",
    "on_vllm",
    "record",
    "scope_panel",
    "self_critique",
    "sure_unsure",
]

def behaviour_diff(
    pair: ModelPair,
    prompts: Any,
    recipe: Annotated[Recipes, As("recipes")] = None,
    *,
    metrics: Sequence[str | Behaviour | Score] = ...,
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | None, As("controls")] = None,
    base_recipes: Annotated[Mapping[str, AppliedRecipe] | None, As("recipes")] = None,
    batch_size: int = 32,
    seed: int = 0,
    base_prompts: Any = None,
    neutral: Annotated[Any, As("prompts")] = None,
    max_new_tokens: int = 32,
    samples: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    refusal: TextRule = ...,
    scored: str = "auto",
    continuation: str = "tuned",
    controls_on: str = "tuned",
    bins: int = ...,
    texts: bool = False,
    executor: Executor = "local",
    engine_settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BehaviourDiff:
    """Compare base, tuned, and the tuned model under any number of recipes.

    Options: :class:`workbench.behaviour.options.DiffOptions`.
    """

def dose_response(
    pair: ModelPair,
    prompts: Any,
    dose: Annotated[Any, As("recipe")],
    strengths: Annotated[Sequence[int | float], As("numbers")],
    *,
    metric: Annotated[str | Behaviour | Score, As("text")] = "accuracy",
    controls: Annotated[Sequence[Any], As("controls")] = (),
    on: str = "tuned",
    seed: int = 0,
    batch_size: int = 32,
    neutral: Annotated[Any, As("prompts")] = None,
    out_of_scope: Annotated[Any, As("prompts")] = None,
    max_new_tokens: int = 32,
    refusal: TextRule = ...,
    progress: Progress | None = None,
) -> DoseResponse:
    """Follow ``metric`` (a name, or a behaviour) of one side of a pair over the strengths of a recipe.

    Options: :class:`workbench.behaviour.dose.DoseOptions`.
    """

def known_unknown(
    pair: ModelPair,
    questions: Any,
    recipe: Annotated[Recipes, As("recipes")] = None,
    *,
    metrics: Sequence[str] = ("refusal", "contained"),
    knows: str = "contained",
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | None, As("controls")] = None,
    seed: int = 0,
    batch_size: int = 32,
    base_prompts: Any = None,
    neutral: Annotated[Any, As("prompts")] = None,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    refusal: TextRule = ...,
    scored: str = "auto",
    continuation: str = "tuned",
    controls_on: str = "tuned",
    bins: int = ...,
    texts: bool = False,
    executor: Executor = "local",
    engine_settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PartedDiff:
    """Refusal (and any other metric) of questions that the BASE answers rightly, and of those that it does not.

    Options: :class:`workbench.behaviour.options.DiffOptions`.
    """

def scope_panel(
    pair: ModelPair,
    recipe: Annotated[AppliedRecipe | Mapping[str, AppliedRecipe], As("recipes")],
    in_scope: Any,
    near_scope: Annotated[Any, As("prompts")],
    out_of_scope: Annotated[Any, As("prompts")],
    *,
    changed: Annotated[Changed, As("text")] = "next_token",
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | Sequence[AppliedRecipe], As("controls")] = (),
    on: str = "tuned",
    seed: int = 0,
    max_new_tokens: int = 32,
    progress: Progress | None = None,
) -> ScopePanel:
    """Share of prompts whose behaviour a recipe changes, in three sets of prompts (``near_scope`` may be None).

    Options: :class:`workbench.behaviour.scope.ScopeOptions`.
    """

def sure_unsure(
    pair: ModelPair,
    questions: Any,
    recipe: Annotated[Recipes, As("recipes")] = None,
    *,
    metrics: Sequence[str] = ("accuracy", "confidence", "brier", "ece"),
    confidence: Sequence[int | float] | numpy.ndarray | None = None,
    threshold: int | float | None = None,
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | None, As("controls")] = None,
    seed: int = 0,
    batch_size: int = 32,
    base_prompts: Any = None,
    neutral: Annotated[Any, As("prompts")] = None,
    max_new_tokens: int = 32,
    samples: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    refusal: TextRule = ...,
    scored: str = "auto",
    continuation: str = "tuned",
    controls_on: str = "tuned",
    bins: int = ...,
    texts: bool = False,
    executor: Executor = "local",
    engine_settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PartedDiff:
    """Accuracy and calibration where the tuned model is sure of its answer, and where it is not.

    Options: :class:`workbench.behaviour.options.DiffOptions`.
    """
