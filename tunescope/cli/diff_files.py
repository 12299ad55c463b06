"""What ``tunescope diff`` reads before a model: prompts, texts, recipes and metrics, and what measuring them costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunescope.experiments.requirements import sample
from workbench.behaviour import METRICS
from workbench.behaviour.dosing import DOSED
from workbench.behaviour.metrics import check_metrics
from workbench.behaviour.scorers import read_metrics
from workbench.errors import UserError
from workbench.prompts import Prompts

if TYPE_CHECKING:
    from interventions import Recipe
    from tunescope.cli.diff_run import DiffRequest

NEED_DISTRACTOR = {"logit_diff", "distracted", "answer_diff"}
NEED_ANSWER = {
    "accuracy", "prob", "brier", "ece", "answer_logprob", "answer", "answer_prob", "exact_match", "answered",
    "contained",
}  # fmt: skip
DEFAULT = {
    "accuracy", "logit_diff", "kl", "brier", "answer_logprob", "kl_base_model", "answered", "refusal", "repetition",
    "common_tokens", "ece", "perplexity",
}  # fmt: skip
"""What is measured when nothing is asked for, where the prompts allow it."""


class Files(NamedTuple):
    """What is read before a model is."""

    rows: Prompts
    neutral: Prompts | None
    near: Prompts | None
    outside: Prompts | None
    recipes: dict[str, Recipe]
    metrics: list[str]


def read_files(request: DiffRequest) -> Files:
    """Prompts, texts and recipes, read and checked. Raises :class:`UserError` for what does not fit together."""
    turns: dict[str, Any] = {"chat": request.chat, "system": request.system}
    rows = Prompts.load(request.prompts, **turns)
    rows = rows if request.limit is None else sample(rows, request.limit, request.seed)
    neutral = None if request.neutral is None else Prompts.load(request.neutral)
    near, outside = (None if path is None else Prompts.load(path, **turns) for path in (request.near, request.outside))
    if near is not None and outside is None:
        raise UserError("A scope panel needs prompts out of scope: give --outside FILE.")
    recipes = _recipes(request.recipes)
    metrics = _metrics(request, rows, neutral=neutral is not None)
    read_metrics(metrics)
    if request.follow is not None:
        names, behaviours = read_metrics([request.follow])
        check_metrics([name for name in names if name not in behaviours], DOSED)
    return Files(rows, neutral, near, outside, recipes, metrics)


def cost_of(request: DiffRequest, files: Files) -> str:
    """What a diff computes, in words."""
    recipes = len(files.recipes)
    models = 2 + recipes * (1 + len(request.strengths or ())) * (1 + request.draws)
    texts = f", and write {1 + request.samples} texts of {request.max_new_tokens} tokens to each"
    every = "base and tuned" if models == 2 else f"base, tuned and {models - 2} with recipes (random ones among them)"
    return f"{every} read {len(files.rows)} prompts for {len(files.metrics)} metrics{texts}"


def _recipes(paths: Sequence[Path]) -> dict[str, Recipe]:
    from interventions.exchange.reading import load_recipe, recipe_name

    recipes: dict[str, Recipe] = {}
    for path in paths:
        name = recipe_name(path)
        if name in recipes:
            raise UserError(f"Two recipes are called {name!r}: rename one of the files.")
        recipes[name] = load_recipe(path)
    return recipes


def _metrics(request: DiffRequest, rows: Prompts, *, neutral: bool) -> list[str]:
    """Those asked for; else those that the prompts allow, and the behaviours."""
    names = request.metrics
    if names is not None and names != "all":
        return [*(name.strip() for name in names.split(",") if name.strip()), *request.behaviours]
    lacking = set() if all(row.answer for row in rows) else NEED_ANSWER | NEED_DISTRACTOR
    lacking |= set() if all(row.answer and row.distractor for row in rows) else NEED_DISTRACTOR
    lacking |= set() if neutral else {"perplexity"}
    fitting = [name for name in METRICS if name not in lacking and (names == "all" or name in DEFAULT)]
    return list(dict.fromkeys([*fitting, *request.behaviours]))
