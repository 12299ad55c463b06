"""Where a tuned model keeps the task: in its weights, or in what a soft prompt can carry (ProMoT's 2 x 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from interventions.training.soft_prompt import SoftPrompt, train_soft_prompt
from interventions.training.trainer import Schedule
from probes.call_settings import call_settings
from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import CHANGE, EffectPanel, scored_line, spanned, table_of
from probes.effects.rewriting import with_demonstrations
from probes.halves import halves
from probes.replay import counted
from probes.results import Provenance
from probes.series.answers import pair_members, updates_of
from workbench.argument_checks import check_pair
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts

Scores = dict[tuple[str, str, str], np.ndarray]
"""(weights, soft prompt on or off, prompts) -> score by prompt."""


@method(
    "soft-prompt-split",
    group="retention",
    question="Did tuning specialise the format, so that a soft prompt could have carried it and the rest been kept?",
    papers=("Preserving In-Context Learning ability in Large Language Model Fine-tuning",),
    needs=Needs(columns=("answer",)),
    cost="a short training of a soft prompt on the base, then four scored passes of each model of the series",
    example="--others other_tasks.jsonl",
)
def soft_prompt_split(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    others: Annotated[Any, As("prompts")] = None,
    checkpoints: Sequence[str] = (),
    shots: int = 2,
    tokens: int = 8,
    epochs: int | float = 5,
    learning_rate: float = 1e-2,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Soft prompt on and off, weights old and new: score on the tuned task and in-context score on other tasks.

    A soft prompt is trained on half of the prompts, on the base; all scores are on the other half. ``checkpoints`` are
    further columns between base and tuned, so that the step at which other tasks are lost shows (Wang et al. 2023: at
    the start, as the format is learnt). The interaction says whether the soft prompt and the weights learnt the same:
    below 0 what one has, the other no longer adds. The control of the soft prompt is one of random token embeddings.

    Args:
        pair: Base and tuned model.
        prompts: The tuned task, with answers.
        others: Other tasks with answers, asked behind examples of their own; left out, only the task is scored.
        checkpoints: Fine-tunes of the base between it and the tuned model, in order.
        shots: Examples before a prompt of the other tasks.
        tokens: Vectors of the soft prompt.
        epochs: Passes over the training half.
        learning_rate: Step size of the soft prompt's training.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the halves, the training and intervals.

    Returns:
        An :class:`EffectPanel`; ``model`` is the weights, ``group`` "task, off", "task, on", "others, off", ..., and
        "soft prompt's gain" beside a random one's.

    Raises:
        UserError: Fewer than four prompts, or rows without answers.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    train, test = halves(rows, seed)
    beside = None if others is None else Prompts.of(others)
    asked_rows = {"task": test} if beside is None else {
        "task": test, "others": with_demonstrations(beside, beside, shots, seed)
    }  # fmt: skip
    schedule = Schedule(epochs=epochs, learning_rate=learning_rate, seed=seed)
    also = list(asked_rows.values())
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    with counted(pair.base, pair.tuned) as passes:
        soft = train_soft_prompt(pair.base, train, tokens=tokens, also_read=also, schedule=schedule, progress=progress)
        random = _random_prompt(pair, soft, seed)
        scores = _scores(pair, checkpoints, {"on": soft, "random": random}, asked_rows, metric, options, progress)
    clusters = {name: own.clusters for name, own in asked_rows.items()}
    table = table_of(split_lines(scores, clusters, seed))
    return EffectPanel(
        table=table,
        control="a soft prompt of random token embeddings",
        provenance=Provenance.of(
            "soft_prompt_split", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, others=beside),
        ),
        values=pd.DataFrame({" | ".join(key): pd.Series(values) for key, values in scores.items()}),
        measured=metric,
        heading="Soft prompt and weights",
        verdict=carried(table, list(clusters), metric),
    )  # fmt: skip


def _random_prompt(pair: ModelPair, soft: SoftPrompt, seed: int) -> SoftPrompt:
    import torch

    size = len(soft.vectors)
    random = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(pair.base.n_token_ids, (size,), generator=random).to(pair.base.device)
    with torch.no_grad(), pair.base.active():
        vectors = pair.base.inner.get_input_embeddings()(ids).float().cpu()
    return SoftPrompt(vectors, soft.placeholder)


def _scores(
    pair: ModelPair, checkpoints: Sequence[str], softs: dict[str, SoftPrompt], rows: dict[str, Prompts],
    metric: Measure, options: dict[str, Any], progress: Progress | None,
) -> Scores:  # fmt: skip
    bar = progress or Silent()
    bar.start("soft prompt and weights", 2 + len(checkpoints))
    scores: Scores = {}

    def score(weights: str, model: Any) -> None:
        for name, own in rows.items():
            scores[weights, "off", name] = answer_scores(model, own, metric, **options)
            for kind, soft in softs.items():
                read = soft.before(own, model.tokenizer)
                scores[weights, kind, name] = answer_scores(model, read, metric, recipe=soft, **options)
        bar.advance()

    score("base", pair.base)
    if checkpoints:
        vectors, _ = updates_of(pair.base, pair_members(pair, checkpoints))
        for name, vector in list(vectors.items())[:-1]:
            with vector.graft(pair.base).entered(pair.base):
                score(name, pair.base)
    score("tuned", pair.tuned)
    bar.finish()
    return scores


def split_lines(scores: Scores, clusters: dict[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """Lines of every cell, of the soft prompt's gain for each weights, of tuned - base, and of the interaction."""
    weights = list(dict.fromkeys(key[0] for key in scores))
    lines = []
    for name, own in clusters.items():
        for weight in weights:
            off, on, random = (scores[weight, kind, name] for kind in ("off", "on", "random"))
            lines += [
                scored_line(f"{name}, off", weight, off, 0.0, own, seed),
                scored_line(f"{name}, on", weight, on, random, own, seed),
                scored_line(f"{name}, soft prompt's gain", weight, on - off, random - off, own, seed),
            ]
        change = {kind: scores["tuned", kind, name] - scores["base", kind, name] for kind in ("off", "on", "random")}
        both = change["on"] - change["off"], change["random"] - change["off"]
        lines += [
            scored_line(f"{name}, off", CHANGE, change["off"], 0.0, own, seed),
            scored_line(f"{name}, on", CHANGE, change["on"], 0.0, own, seed),
            scored_line(f"{name}, interaction", CHANGE, *both, own, seed),
        ]
    return lines


def carried(table: pd.DataFrame, names: Sequence[str], measured: str) -> str:
    """What tuning and what the soft prompt alone did to the task and to other tasks, in words."""
    lines, said = {(row["group"], row["model"]): row for row in table.to_dict("records")}, []
    for name in names:
        tuning, soft = lines[f"{name}, off", CHANGE], lines[f"{name}, soft prompt's gain", "base"]
        said.append(
            f"{name}: tuning {spanned(tuning)} (q = {tuning['q']:.2g}), the soft prompt on the base {spanned(soft)} "
            f"(a random one {soft['control']:+.2g}, p = {soft['p']:.2g})"
        )
    return f"change of {measured}: {'; '.join(said)}"
