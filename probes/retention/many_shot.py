"""Whether tuning kept the ability to learn from examples in the prompt: accuracy over the number of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from probes.effects.answers import Measure, role_scores
from probes.effects.panel import EffectPanel, paired_lines, table_of
from probes.effects.rewriting import with_demonstrations
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts


@method(
    "many-shot",
    group="retention",
    question="Does the tuned model still learn from examples in its prompt, few and many?",
    papers=("You Only Fine-tune Once: Many-Shot In-Context Fine-Tuning for Large Language Model",),
    needs=Needs(columns=("answer",)),
    cost="two scored passes of each model for every number of examples",
    example="--shots 0,1,4,16",
)
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
) -> EffectPanel:
    """Accuracy of both models behind 0, 1, 2, ... answered examples, and what examples add (He et al. 2025).

    Each prompt is put behind examples drawn from the other prompts. The control draws the same examples with their
    answers exchanged, so that format and words are there and the task is not: what true examples add beyond it is
    learning in context. A base against itself differs nowhere.

    Args:
        pair: Both models.
        prompts: Rows with an answer; rows of one group never stand before each other.
        shots: How many examples, one or several numbers; 0 is the question alone.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the examples and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "k shots" and "gain of k shots" (over the smallest number).

    Raises:
        UserError: Rows lack answers, or there are too few to draw examples from.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    numbers = sorted(set(shots))
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    bar = progress or Silent()
    bar.start("many-shot curve", len(numbers))
    true, exchanged = {}, {}
    with counted(pair.base, pair.tuned) as passes:
        for count in numbers:
            true[count] = role_scores(pair, with_demonstrations(rows, rows, count, seed), metric, **options)
            wrong = with_demonstrations(rows, rows, count, seed, answers=exchanged_answers(rows, seed))
            exchanged[count] = role_scores(pair, wrong, metric, **options) if count else true[count]
            bar.advance()
    bar.finish()
    return EffectPanel(
        table=table_of(_lines(true, exchanged, rows.clusters, seed)),
        control="the same examples with their answers exchanged",
        provenance=Provenance.of("many_shot_curve", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({
            f"{role}, {count} shots": values for count, own in true.items() for role, values in own.items()
        }),
        measured=metric,
        heading="Learning from examples in the prompt",
    )  # fmt: skip


def exchanged_answers(rows: Prompts, seed: int) -> list[str]:
    """The answers of the rows, dealt to other rows."""
    order = np.random.default_rng(seed + 1).permutation(len(rows))
    moved = np.empty_like(order)
    moved[order] = np.roll(order, 1)  # one cycle: no row keeps its own
    return [str(rows[int(number)].answer) for number in moved]


def _lines(true: dict[int, Any], exchanged: dict[int, Any], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    first, *rest = true
    lines = [
        line for count in true
        for line in paired_lines(f"{count} shots", true[count], exchanged[count], clusters, seed)
    ]  # fmt: skip
    for count in rest:
        gained, control = (
            {role: own[count][role] - own[first][role] for role in own[count]} for own in (true, exchanged)
        )
        lines += paired_lines(f"gain of {count} shots", gained, control, clusters, seed)
    return lines
