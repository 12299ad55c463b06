"""What tuning did language by language, and whether a vector found in one language moves the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

import interventions as iv
from probes.effects.answers import Measure, answer_scores, role_scores
from probes.effects.panel import CHANGE, EffectPanel, paired_lines, scored_line
from probes.effects.rewriting import column_of
from probes.halves import halves
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.stats.controls import random_directions
from workbench.stats.fdr import q_values
from workbench.typing import Float, Tensor

MOVED = "base + vector - base"


@method(
    "language-transfer",
    group="effects",
    question="Did tuning in one language carry over to others, and does a vector found in one move them too?",
    papers=("Crosslingual Generalization through Multitask Finetuning",),
    needs=Needs(columns=("answer",)),
    cost="a scored pass of each model, one recording of each, and one scored pass per vector",
    example="--language language --source en --layer 1 --controls 10",
)
def language_transfer(  # noqa: PLR0913 (a public call)
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
) -> EffectPanel:
    """The change of every language, and that of the base when the source language's vector is added.

    The vector is the mean of tuned - base at the last token of the source language's prompts, of one half of their
    groups; everything is reported on the other half. Its control are random directions of its norm. Run it once per
    size of a family (BLOOM and BLOOMZ, mT5 and mT0 as causal models) for the report by size.

    Args:
        pair: Base and tuned model.
        prompts: Rows with an answer and a language.
        source: The language in which the vector is found.
        language: The column of the language.
        layer: Where the vector is found and added: an index, or a fraction of the depth.
        strength: Of the vector.
        controls: Random directions, 10 or more.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of halves, directions and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is the language, ``model`` base, tuned, their difference, or
        "base + vector - base"; ``numbers`` hold each language's share of tuning's change that the vector makes.

    Raises:
        UserError: No row is in the source language, or all are.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    _check_languages(rows, language, source)
    finding, reporting = halves(rows, seed)
    (place,) = resolve_layers(layer, pair.base.n_layers)
    spoken = np.array([str(value) for value in column_of(reporting, language)])
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    watch = progress or Silent()
    watch.start("language transfer", 2 + controls)
    with counted(pair.base, pair.tuned) as passes:
        scores = role_scores(pair, reporting, metric, **options)
        watch.advance()
        vector = _vector(pair, finding, language, source, place, batch_size)

        def moved(along: Tensor) -> np.ndarray:
            recipe = iv.Recipe([iv.Offset(place, along, strength=strength, positions="last+generated")])
            watch.advance()
            return answer_scores(pair.base, reporting, metric, recipe=recipe, **options) - scores["base"]

        change = moved(vector)
        random = np.mean(
            [moved(random_direction) for random_direction in random_directions(vector, draws=controls, seed=seed)],
            axis=0,
        )
    watch.finish()
    lines, shares = _lines(scores, change, random, spoken, reporting.clusters, seed)
    table = pd.DataFrame(lines)
    compared = table["model"].isin((CHANGE, MOVED)).to_numpy()
    table = table.assign(q=np.nan)
    table.loc[compared, "q"] = q_values(table.loc[compared, "p"].to_numpy(float))
    return EffectPanel(
        table=table,
        control=f"of the vector, {controls} random directions of its norm; of tuning, no change",
        provenance=Provenance.of("language_transfer", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({**scores, "moved": change, "random": random, "language": spoken}),
        measured=metric,
        heading=f"Languages, with the vector of {source} at layer {place}",
        verdict=_verdict(table, source),
        numbers=shares,
    )  # fmt: skip


def _check_languages(rows: Prompts, language: str, source: str) -> None:
    spoken = [str(value) for value in column_of(rows, language)]
    if source not in spoken or len(set(spoken)) < 2:
        raise UserError(
            f"The prompts are in {', '.join(dict.fromkeys(spoken))}: give {source} and at least one other language."
        )


def _vector(
    pair: ModelPair, finding: Prompts, language: str, source: str, layer: int, batch_size: int
) -> Float[Tensor, " d_model"]:
    own = [number for number, label in enumerate(column_of(finding, language)) if str(label) == source]
    if not own:
        raise UserError(f"No group of the choosing half is in {source}: give more prompts in it.")
    states = record(pair, finding[own], ["resid_post"], layers=[layer], batch_size=batch_size)
    (name,) = states.sites
    return (states["tuned"][name][:].float() - states["base"][name][:].float()).flatten(1).mean(0)


def _lines(
    scores: dict[str, np.ndarray], change: np.ndarray, random: np.ndarray, spoken: np.ndarray, clusters: np.ndarray,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, float]]:  # fmt: skip
    lines, shares = [], {}
    for name in dict.fromkeys(spoken.tolist()):
        own = spoken == name
        sides = {role: score[own] for role, score in scores.items()}
        lines += paired_lines(name, sides, {"base": 0.0, "tuned": 0.0}, clusters[own], seed)
        lines.append(scored_line(name, MOVED, change[own], random[own], clusters[own], seed))
        tuned = float((sides["tuned"] - sides["base"]).mean())
        shares[f"share of {name}"] = float(change[own].mean()) / tuned if abs(tuned) > 1e-9 else float("nan")
    return lines, shares


def _verdict(table: pd.DataFrame, source: str) -> str:
    carried = {
        what: [str(group) for group in table[(table["model"] == model) & (table["q"] < 0.05)]["group"]]
        for what, model in (("tuning", CHANGE), ("the vector", MOVED))
    }
    others = [str(group) for group in dict.fromkeys(table["group"]) if group != source]
    said = [
        f"{what} moves {', '.join(line) or 'no language'} ({len([name for name in line if name != source])} of "
        f"{len(others)} others)"
        for what, line in carried.items()
    ]
    return "; ".join(said)
