"""``behaviour_diff``: base | tuned | tuned under each recipe, on the same prompts, with intervals over prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from workbench.argument_checks import check_pair, read_options
from workbench.behaviour.estimates import Estimator, estimates
from workbench.behaviour.measuring import Compared, Measured, Trial, measure
from workbench.behaviour.options import DiffOptions
from workbench.behaviour.result import BehaviourDiff
from workbench.behaviour.scorers import Behaviour, Score, read_metrics
from workbench.behaviour.subject import AppliedRecipe, Subject
from workbench.behaviour.texts import texts_table
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.results import Provenance

DEFAULT_METRICS = ("accuracy", "prob", "kl")
Recipes = AppliedRecipe | Mapping[str, AppliedRecipe] | None


@method(
    "behaviour-diff",
    group="behaviour",
    question="How differently do base, tuned and steered models behave?",
    kind="behaviour",
    cost="a forward pass per batch and model, and generated texts where a metric reads them",
    example="--metrics accuracy,kl --recipe offset.safetensors --controls 10",
)
def behaviour_diff(
    pair: ModelPair,
    prompts: Any,
    recipe: Annotated[Recipes, As("recipes")] = None,
    *,
    metrics: Sequence[str | Behaviour | Score] = DEFAULT_METRICS,
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | None, As("controls")] = None,
    base_recipes: Annotated[Mapping[str, AppliedRecipe] | None, As("recipes")] = None,
    batch_size: int = 32,
    seed: int = 0,
    **options: Any,
) -> BehaviourDiff:
    """Compare base, tuned, and the tuned model under any number of recipes.

    Intervals are 95 % bootstraps over prompts (over groups where prompts have them), seeded; sampled texts share their
    noise.

    Args:
        pair: Base and tuned.
        prompts: Anything :class:`workbench.Prompts` takes.
        recipe: One recipe for the tuned model, or named ones.
        metrics: Names of :data:`workbench.behaviour.METRICS`, and behaviours (:func:`workbench.behaviour`: ``"begins:I
            am sorry"``, a function of response and prompt).
        base_recipes: Recipes applied to the base instead.
        controls: Named lists of random recipes matched to a recipe, as :func:`probes.stand_ins` draws them (on the
            command line how many); each list is averaged over its draws per prompt.
        seed: Of intervals and sampled texts.
        batch_size: Prompts per forward pass.
        **options: See :class:`DiffOptions`.
    """
    check_pair(pair, prompts)
    rows, settings = Prompts.of(prompts), read_options(DiffOptions, options)
    names, behaviours = read_metrics(metrics)
    trial = Trial(rows, names, settings, batch_size, seed, behaviours)
    compared = compared_models(pair, recipe, controls, base_recipes, settings.controls_on)
    measured = measure(read_by_side(compared, pair, rows, settings.base_prompts), trial)
    return _result(pair, measured, trial)


def compared_models(
    pair: ModelPair,
    recipe: Recipes = None,
    controls: Mapping[str, Sequence[AppliedRecipe]] | None = None,
    base_recipes: Mapping[str, AppliedRecipe] | None = None,
    controls_on: str = "tuned",
) -> list[Compared]:
    """Base, tuned, and one line for every recipe and control. Raises :class:`UserError` for a name used twice.

    Controls under a recipe's own name are called ``random <name>``.
    """
    named: Mapping[str, AppliedRecipe] = (
        {} if recipe is None else recipe if isinstance(recipe, Mapping) else {"tuned + recipe": recipe}
    )
    compared = [Compared(side, (Subject(side, model),)) for side, model in pair.models.items()]
    compared += [Compared(name, (Subject(name, pair.tuned, applied),)) for name, applied in named.items()]
    compared += [
        Compared(name, (Subject(name, pair.base, base_recipe),)) for name, base_recipe in (base_recipes or {}).items()
    ]
    for label, draws in (controls or {}).items():
        name = f"random {label}" if label in named else label
        if not draws:
            raise UserError(f"The control {name!r} has no draws: give at least one recipe, better ten.")
        compared.append(
            Compared(name, tuple(Subject(name, pair.models[controls_on], draw) for draw in draws), is_control=True)
        )
    names = [entry.name for entry in compared]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two of the compared models are called {twice[0]!r}: give every recipe a name of its own.")
    return compared


def read_by_side(compared: list[Compared], pair: ModelPair, rows: Prompts, base_prompts: Any) -> list[Compared]:
    """``compared``, where all that runs on the base reads ``base_prompts``.

    Raises:
        UserError: They are not as many as the prompts.
    """
    if base_prompts is None:
        return compared
    own = Prompts.of(base_prompts)
    if len(own) != len(rows):
        raise UserError(
            f"There are {len(own)} base prompts for {len(rows)} prompts: give the base its own form of every row."
        )
    return [
        dataclasses.replace(entry, prompts=own) if entry.subjects[0].model is pair.base else entry for entry in compared
    ]


def _result(pair: ModelPair, measured: dict[str, Measured], trial: Trial) -> BehaviourDiff:
    options = trial.options
    texts = Prompts.of(options.neutral) if "perplexity" in trial.metrics else None
    estimator = Estimator(
        trial.prompts.clusters, None if texts is None else texts.clusters, trial.seed, options.bins, trial.shares
    )
    replies = {name: values.replies for name, values in measured.items() if values.replies is not None}
    calibrated = {"ece", "brier"} & set(trial.metrics)
    has_curve = calibrated and {"confidence", "accuracy"} <= set(measured["base"].frames[0])
    scored = trial.scored(Subject("tuned", pair.tuned), warn=False)
    return BehaviourDiff(
        scored=pd.DataFrame() if scored is None else scored.table(pair.tokenizer),
        how="; ".join(part for part in (_drawn(trial.prompts.clusters), scored.text if scored else "") if part),
        table=estimates(measured, trial.metrics, estimator),
        rows=_long(measured),
        texts=texts_table(replies, trial.prompts, pair.tokenizer, options.refusal) if replies else pd.DataFrame(),
        calibration=estimator.calibration(measured) if has_curve else pd.DataFrame(),
        neutral=_neutral(measured) if texts is not None else pd.DataFrame(),
        provenance=provenance(pair, "behaviour_diff", trial, neutral=None if texts is None else texts.hash),
    )


def _drawn(clusters: np.ndarray) -> str:
    groups = len(np.unique(clusters))
    if groups == len(clusters):
        return ""
    return f"the intervals draw {groups} groups: prompts of one group, or that say the same, count once"


def provenance(pair: ModelPair, made_by: str, trial: Trial, **more: Any) -> Provenance:
    """Identities of both models, hash of the prompts, seed, settings and versions."""
    settings = {"metrics": list(trial.metrics), "batch_size": trial.batch_size, **trial.options.settings(), **more}
    return Provenance.of(
        made_by, pair.models, trial.prompts, seed=trial.seed, device=str(pair.tuned.device), settings=settings
    )


def _long(measured: Mapping[str, Measured]) -> pd.DataFrame:
    frames = [
        values.mean().assign(model=name, prompt=np.arange(len(values.frames[0]))) for name, values in measured.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _neutral(measured: Mapping[str, Measured]) -> pd.DataFrame:
    lines = [
        pd.DataFrame(
            {"model": name, "draw": draw, "text": np.arange(len(sums)), "logprob": sums[:, 0], "tokens": sums[:, 1]}
        )
        for name, own in measured.items()
        for draw, sums in enumerate(own.neutral)
    ]
    return pd.concat(lines, ignore_index=True)


__all__ = ["DEFAULT_METRICS", "BehaviourDiff", "DiffOptions", "behaviour_diff", "compared_models", "provenance"]
