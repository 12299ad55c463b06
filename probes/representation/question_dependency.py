"""How far back a model looks while it reasons: what of each answer token hangs on the question, and how far away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from probes.effects.panel import EffectPanel, paired_lines, table_of
from probes.replay import counted
from probes.representation.instructions import influence
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import continuations_of
from workbench.behaviour.subject import Subject
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

QUESTION, DISTANCE = "share on the question", "mean distance"


@method(
    "question-dependency",
    group="representation",
    question="While it reasons, how much does the model look at the question, and how far back at all?",
    papers=(
        "Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning Learning of "
        "Language Models",
    ),
    needs=Needs(columns=("answer",)),
    cost="a forward pass of each model per prompt, and a backward pass per answer token that is followed",
    example="--most 2 --skip 0",
)
def question_dependency(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    skip: Annotated[int, Within(0, None)] = 1,
    most: int = 24,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Attribution of the answer's tokens to the question, and its mean distance, for base (or plain SFT) and tuned.

    Both models read the row's own answer. The influence of a token on a later answer token is the size of the gradient
    of its probability times the embedding. "share on the question" is the prompt's part of all influence on an answer
    token, "mean distance" the influence-weighted distance over the largest possible. The first ``skip`` answer tokens
    have little but the question to look at and are left out. The control is even attention to everything read so far,
    which the answers' length alone decides. Masked-thought tuning (Chen et al. 2024) is said to raise both:
    ``iv.tune_in_stages(model, [Stage(rows, "masked_thought")])`` beside ``"answer"``.

    Args:
        pair: Two models: base and tuned, or plain and masked-thought fine-tunes.
        prompts: Rows with a question and an answer of several tokens.
        skip: Answer tokens at the start that are left out.
        most: Answer tokens that are followed back, spread evenly over the answer.
        seed: Of intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "share on the question" or "mean distance".

    Raises:
        UserError: An answer has no token behind those that are left out.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if skip < 0:
        raise UserError(f"skip counts answer tokens, from 0; got {skip}.")
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    answers = continuations_of(rows, Subject("tuned", pair.tuned), "answer")
    if short := [number for number, answer in enumerate(answers) if len(answer) <= skip]:
        raise UserError(
            f"The answer of prompt {short[0]} has {len(answers[short[0]])} tokens, and the first {skip} are left out: "
            "give longer answers or a smaller skip."
        )
    bar = progress or Silent()
    bar.start("question dependency", 2 * len(rows))
    scores: dict[str, np.ndarray] = {}
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            dependencies = []
            for prompt, answer in zip(ids, answers, strict=True):
                steps = _steps(len(answer), skip, most)
                read = answer[: int(steps[-1]) + 1]
                influenced = influence(pair.models[role], prompt, read, steps=steps.tolist(), whole=True)
                dependencies.append(dependency(influenced, len(prompt), steps))
                bar.advance()
            scores[role] = np.array(dependencies)
    bar.finish()
    even = np.array([
        even_dependency(len(prompt), _steps(len(answer), skip, most))
        for prompt, answer in zip(ids, answers, strict=True)
    ])  # fmt: skip
    lines = []
    for column, name in enumerate((QUESTION, DISTANCE)):
        sides = {role: score[:, column] for role, score in scores.items()}
        controls = {role: even[:, column] for role in scores}
        lines += paired_lines(name, sides, controls, rows.clusters, seed)
    return EffectPanel(
        table=table_of(lines),
        control="even influence of everything read so far",
        provenance=Provenance.of(
            "question_dependency", pair, rows, seed=seed, forward_passes=passes.forward or 2 * len(rows),
            backward_passes=2 * sum(len(_steps(len(answer), skip, most)) for answer in answers),
        ),
        values=pd.DataFrame({
            f"{role}: {name}": scores[role][:, column]
            for role in scores for column, name in enumerate((QUESTION, DISTANCE))
        }),
        measured="share of influence; distance over the largest",
        heading="Dependency on the question",
        units={QUESTION: "of an answer token's influences", DISTANCE: "of the largest distance"},
    )  # fmt: skip


def _steps(length: int, skip: int, most: int) -> np.ndarray:
    """The answer tokens that are followed, evenly spread."""
    count = min(most, length - skip)
    return np.unique(np.linspace(skip, length - 1, count).round().astype(int))


def dependency(influenced: Float[Tensor, "read step"], prompt: int, steps: np.ndarray) -> tuple[float, float]:
    """(share of influence on the first ``prompt`` tokens, mean distance over the largest), means over ``steps``, the
    places of the answer tokens that each column is of."""
    size = influenced.abs().double().numpy()
    shares, distances = [], []
    for column, step in enumerate(steps):
        behind = prompt + int(step)
        weights = size[:behind, column]
        total = weights.sum()
        if total <= 0:
            continue
        away = behind - np.arange(behind)
        shares.append(weights[:prompt].sum() / total)
        distances.append((weights * away).sum() / total / behind)
    return (float(np.mean(shares)), float(np.mean(distances))) if shares else (0.0, 0.0)


def even_dependency(prompt: int, steps: np.ndarray) -> tuple[float, float]:
    """The same where every token has the same influence."""
    behind = prompt + steps
    return float((prompt / behind).mean()), float(((behind + 1) / 2 / behind).mean())
