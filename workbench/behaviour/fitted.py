"""A behaviour read from a model's own states: a linear classifier fitted on answers that somebody labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from workbench.argument_checks import check_subject
from workbench.behaviour.generation import Reply
from workbench.behaviour.subject import Subject, Work, padded
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site, resolve_layers
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

if TYPE_CHECKING:
    from workbench.behaviour.scorers import Behaviour

FOLDS = 5
FEWEST = 4
"""Labelled answers of each kind that a classifier needs at least."""


@dataclass(frozen=True, eq=False)
class StateClassifier:
    """P(behaviour) from the mean of resid_post over an answer's tokens at one layer."""

    layer: int
    classifier: Pipeline
    accuracy: float
    """On answers to prompts that were held out (5 folds, groups together)."""
    answers: int

    def probabilities(self, states: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, " row"]:
        """The probability that each answer shows the behaviour."""
        return self.classifier.predict_proba(states)[:, 1]


def fit(
    subject: Any,
    prompts: Any,
    answers: Sequence[str],
    labels: Sequence[bool | int],
    *,
    layers: Any = None,
    name: str = "fitted",
    batch_size: int = 16,
) -> Behaviour:
    """A behaviour that a linear classifier reads from the model's states, fitted on labelled answers.

    Logistic regression on the mean of resid_post over the answer's tokens (a linear probe, Alain & Bengio 2016). It
    reads each compared model's own states, so it can be fooled by a recipe that moves what it reads: look at texts too.

    Args:
        subject: a model, or a pair (its tuned model is read).
        prompts: the questions, one for each answer; rows of one group stay in one fold.
        answers: the texts that were given.
        labels: whether each answer shows the behaviour.
        layers: which layers to try, as indices or fractions of depth; by default four in the deeper half.
        name: what tables call it.
        batch_size: rows per forward pass.

    Returns:
        A behaviour for ``metrics=``; its ``meaning`` says the accuracy on held-out answers, and the larger class's.

    Raises:
        UserError: unless there are as many answers and labels as prompts, with at least four of each kind.

    Example:
        ``wb.behaviour.fit(pair, questions, answers, labels=[True, False, ...], name="evasive")``
    """
    from workbench.behaviour.scorers import Behaviour

    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    rows, wanted = Prompts.of(prompts), np.array([bool(label) for label in labels])
    _check_labels(rows, answers, wanted)
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]
    tried = resolve_layers(layers or [0.5, 0.65, 0.8, 0.95], model.n_layers)
    states = answer_states(Subject("fit", model), rows, ids, tried, Work(batch_size))
    folds = GroupKFold(min(FOLDS, len(np.unique(rows.clusters))))
    right = {
        layer: float((cross_val_predict(_classifier(), states[layer], wanted, groups=rows.clusters, cv=folds) == wanted)
                     .mean())
        for layer in tried
    }  # fmt: skip
    layer = max(tried, key=lambda candidate: right[candidate])
    made = StateClassifier(layer, _classifier().fit(states[layer], wanted), right[layer], len(wanted))
    larger = float(max(wanted.mean(), 1 - wanted.mean()))
    meaning = (
        f"probability of the behaviour by a linear classifier on layer {layer} (accuracy {made.accuracy:.2f} on "
        f"held-out answers, the larger class alone {larger:.2f}; n = {made.answers})"
    )
    return Behaviour(name, meaning, lambda _text, _row: float("nan"), share=False, states=made)


def state_scores(
    subject: Subject,
    prompts: Prompts,
    replies: Sequence[Sequence[Reply]],
    behaviours: Mapping[str, Behaviour],
    work: Work,
) -> pd.DataFrame:
    """The fitted ones among ``behaviours``, one row per prompt: the greedy reply, read by the subject itself."""
    read = {name: behaviour.states for name, behaviour in behaviours.items() if behaviour.states is not None}
    if not read:
        return pd.DataFrame(index=range(len(prompts)))
    ids = [list(samples[0].content) for samples in replies]
    layers = sorted({classifier.layer for classifier in read.values()})
    states = answer_states(subject, prompts, ids, layers, work)
    return pd.DataFrame({name: classifier.probabilities(states[classifier.layer]) for name, classifier in read.items()})


def answer_states(
    subject: Subject, prompts: Prompts, answers: Sequence[Sequence[int]], layers: Sequence[int], work: Work
) -> dict[int, Float[np.ndarray, "row d_model"]]:
    """Layer -> the mean of resid_post over each answer's tokens (over the last prompt token, of an empty one)."""
    model = subject.model
    ids = encode(prompts, model.tokenizer, model.max_positions)
    whole = [[*prompt, *answer] for prompt, answer in zip(ids, answers, strict=True)]
    states = {layer: np.zeros((len(whole), model.d_model)) for layer in layers}

    def take(rows: list[int], means: dict[int, np.ndarray]) -> None:
        for layer, values in means.items():
            states[layer][rows] = values

    lengths = [len(tokens) for tokens in whole]
    read = partial(_mean_states, subject, whole, [len(answer) for answer in answers], list(layers))
    work.each(f"{subject.name}: states", lengths, read, take, subject.applied)
    return states


def _mean_states(
    subject: Subject, whole: Sequence[Sequence[int]], behind: Sequence[int], layers: Sequence[int], rows: list[int]
) -> dict[int, Float[np.ndarray, "row d_model"]]:
    """Of one batch; ``behind``: tokens of each answer."""
    states: dict[int, Tensor] = {}
    hooks = [SiteHook(Site("resid_post", layer), _keeper(states, layer)) for layer in layers]
    lengths = torch.tensor([len(whole[row]) - behind[row] for row in rows])
    with subject.applied_to(rows), subject.model.hooked(hooks, stop=True, prompt_lengths=lengths):
        subject.model.forward(padded(subject, [whole[row] for row in rows]), logits=None)
    return {
        layer: np.stack([row_states[-max(1, behind[row]) :].double().mean(0).cpu().numpy()
                         for row, row_states in zip(rows, value, strict=True)])
        for layer, value in states.items()
    }  # fmt: skip


def _keeper(states: dict[int, Tensor], layer: int) -> Any:
    def keep(value: Tensor, _ctx: Any) -> None:
        states[layer] = value.detach()

    return keep


def _classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def _check_labels(rows: Prompts, answers: Sequence[str], labels: np.ndarray) -> None:
    if not len(rows) == len(answers) == len(labels):
        raise UserError(
            f"There are {len(rows)} prompts, {len(answers)} answers and {len(labels)} labels: give one of each for "
            "every row."
        )
    fewest = int(min(labels.sum(), (~labels).sum()))
    if fewest < FEWEST:
        raise UserError(f"{fewest} answers are of one kind, and a classifier needs {FEWEST} of each: label more.")
