"""One number per prompt that says how well a model answers, by the measures of the behaviour diff."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.measuring import Compared, Trial, measure
from workbench.behaviour.options import DiffOptions
from workbench.behaviour.subject import AppliedRecipe, Subject, Work
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.typing import Float

Measure = Literal["accuracy", "prob", "answer", "preferred", "contained", "answered", "exact_match"]
"""accuracy and prob read the next token (whole answers where they begin alike), answer the log-probability per token,
preferred whether the answer is likelier than the distractor; the rest read the greedy text."""


def answer_scores(
    model: AdaptedModel,
    prompts: Prompts,
    metric: Measure = "accuracy",
    *,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    recipe: AppliedRecipe | None = None,
) -> Float[np.ndarray, " prompt"]:
    """How well ``model`` (under ``recipe``) answers each prompt.

    Raises:
        UserError: A row has no answer, or none to compare with.
    """
    if metric == "preferred":
        return (margins(model, prompts, batch_size=batch_size, recipe=recipe) > 0).astype(np.float64)
    return _measured(model, prompts, metric, DiffOptions(max_new_tokens=max_new_tokens), batch_size, recipe)


def margins(
    model: AdaptedModel, prompts: Prompts, *, batch_size: int = 32, recipe: AppliedRecipe | None = None
) -> Float[np.ndarray, " prompt"]:
    """Log-probability of each whole answer minus that of the distractor, in nats.

    Raises:
        UserError: A row has no answer or no distractor.
    """
    return _measured(model, prompts, "answer_diff", DiffOptions(), batch_size, recipe)


def _measured(
    model: AdaptedModel, prompts: Prompts, name: str, options: DiffOptions, batch_size: int,
    recipe: AppliedRecipe | None,
) -> Float[np.ndarray, " prompt"]:  # fmt: skip
    trial = Trial(prompts, (name,), options, batch_size, 0)
    frame = measure([Compared("model", (Subject("model", model, recipe),))], trial)["model"].frames[0]
    return frame[name].to_numpy(np.float64)


def greedy_texts(model: AdaptedModel, prompts: Prompts, max_new_tokens: int, batch_size: int = 32) -> list[str]:
    """The greedy answer to each prompt."""
    decoding = Decoding(max_new_tokens)
    replies = generate_replies(Subject(model.role, model), prompts, decoding, Work(batch_size))
    return [reply[0].text for reply in replies]


def sampled_texts(
    model: AdaptedModel, prompts: Prompts, samples: int, max_new_tokens: int, seed: int, batch_size: int = 32
) -> list[list[str]]:
    """Sampled answers [prompt][sample], at temperature 1."""
    decoding = Decoding(max_new_tokens, samples=samples, seed=seed)
    replies = generate_replies(Subject(model.role, model), prompts, decoding, Work(batch_size))
    return [[reply.text for reply in drawn[1:]] for drawn in replies]


def role_scores(pair: Any, prompts: Prompts, metric: Measure, **options: Any) -> dict[str, np.ndarray]:
    """:func:`answer_scores` of base and tuned."""
    return {role: answer_scores(pair.models[role], prompts, metric, **options) for role in ("base", "tuned")}
