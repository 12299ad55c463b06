"""Whether a model answers what it knows and declines what it does not, and whether its certainty tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from probes.effects.answers import greedy_texts
from probes.effects.panel import CHANGE, EffectPanel, between_line, columns_by_role, paired_lines, table_of
from probes.effects.rewriting import column_of
from probes.replay import counted
from probes.resampling import bootstrap_weights
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.behaviour.critique import self_critique
from workbench.behaviour.measuring import Compared, Trial, measure
from workbench.behaviour.options import DiffOptions
from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.subject import Subject
from workbench.behaviour.texts import contained
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts

DRAWS = 2_000


@method(
    "certainty",
    group="effects",
    question="Does the tuned model decline what the base did not know, and answer what it knew?",
    papers=("R-Tuning: Teaching Large Language Models to Refuse Unknown Questions",),
    needs=Needs(columns=("answer",)),
    cost="a generated answer and a scored pass per prompt and model",
    example="--domains source",
)
def certainty_split(  # noqa: PLR0913 (a public call)
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
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Refusals on questions that the base knows and does not, and average precision of certainty (Zhang et al. 2024).

    A question is known where the base's greedy text holds the answer. Average precision ranks a model's answers by its
    certainty and says how early the right ones come: 1 where all right ones are surer than all wrong ones, the accuracy
    itself where certainty says nothing (the control). A refusal-aware tune refuses the unknown more than the known,
    in domains that it was not tuned on too.

    Args:
        pair: Both models.
        prompts: Questions with an answer.
        certainty: The probability of the most likely next token, or P(yes) when asked whether the answer is right.
        yes: How the model says that an answer is right, where it is asked.
        no: How it says that one is wrong.
        domains: A column that names a row's domain; numbers are then given for each as well.
        refusal: Text that marks a refusal; by default the house's rule.
        max_new_tokens: Length of an answer.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "refusal, known", "refusal, unknown", "refusal, unknown - known" and
        "average precision", each with the domain behind it where there are domains.

    Raises:
        UserError: A row has no answer or domain.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if len(rows) < 2:
        raise UserError("One question cannot be ranked: give two or more.")
    answers = [str(value) for value in column_of(rows, "answer")]
    seen = {
        "": np.ones(len(rows), dtype=bool),
        **({f", {name}": np.array([value == name for value in column_of(rows, domains)])
            for name in dict.fromkeys(column_of(rows, domains))} if domains else {}),
    }  # fmt: skip
    quantities: dict[str, dict[str, np.ndarray]] = {}
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            model = pair.models[role]
            texts = greedy_texts(model, rows, max_new_tokens, batch_size)
            refused = [_refuses(text, row, refusal) for text, row in zip(texts, rows, strict=True)]
            right = [contained(text, answer) for text, answer in zip(texts, answers, strict=True)]
            quantities[role] = {
                "refused": np.array(refused, float), "right": np.array(right, float),
                "certainty": _certainty(model, rows, texts, certainty, (yes, no), batch_size),
            }  # fmt: skip
    known = quantities["base"]["right"] > 0.5
    lines = [line for name, own in seen.items() for line in _lines(name, quantities, known, own, rows.clusters, seed)]
    table = table_of(lines)
    return EffectPanel(
        table=table,
        control="of refusals none; of average precision the accuracy, which a certainty without meaning gives",
        provenance=Provenance.of("certainty_split", pair, rows, seed=seed, forward_passes=passes.forward),
        values=columns_by_role(quantities),
        measured="share of prompts, or average precision",
        units={group: "" if group.startswith("average") else "share of prompts" for group in table["group"]},
        heading="Known and unknown questions",
        numbers={"known": float(known.sum()), "unknown": float((~known).sum())},
    )  # fmt: skip


def _refuses(text: str, row: Any, mark: str) -> bool:
    return mark.casefold() in text.casefold() if mark else bool(is_refusal(text, row))


def _certainty(
    model: AdaptedModel, rows: Prompts, texts: list[str], how: str, words: tuple[str, str], batch_size: int
) -> np.ndarray:
    if how == "critique":
        return self_critique(model, rows, texts, yes=words[0], no=words[1], batch_size=batch_size)
    trial = Trial(rows, ("confidence",), DiffOptions(scored="first"), batch_size, 0)
    measured = measure([Compared("model", (Subject("model", model),))], trial)
    return measured["model"].frames[0]["confidence"].to_numpy(np.float64)


def average_precision(right: np.ndarray, certainty: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draw] of weights [draw, prompt]: the sum over thresholds of the rise in recall times precision there, tied
    certainties taken together; NaN where nothing is right."""
    order = np.argsort(-certainty, kind="stable")
    last = np.flatnonzero(np.append(np.diff(certainty[order]) != 0, True))
    hits = np.cumsum((weights * right)[:, order], axis=1)[:, last]
    taken = np.cumsum(weights[:, order], axis=1)[:, last]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hits / taken)
        recall = hits / hits[:, -1:]
        return (np.diff(recall, axis=1, prepend=0.0) * precision).sum(1)


def _lines(
    where: str, quantities: Any, known: np.ndarray, own: np.ndarray, clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    parts = {"known": known & own, "unknown": ~known & own}
    for part, mask in parts.items():
        if mask.any():
            sides = {role: values["refused"][mask] for role, values in quantities.items()}
            lines += paired_lines(f"refusal, {part}{where}", sides, {"base": 0.0, "tuned": 0.0}, clusters[mask], seed)
    if all(mask.any() for mask in parts.values()):
        for role, values in quantities.items():
            sides_ = tuple(values["refused"][parts[part]] for part in ("unknown", "known"))
            units = tuple(clusters[parts[part]] for part in ("unknown", "known"))
            lines.append(between_line(f"refusal, unknown - known{where}", role, sides_, units, seed))
    inside = {role: {name: value[own] for name, value in values.items()} for role, values in quantities.items()}
    return [*lines, *_precision_lines(where, inside, clusters[own], seed)]


def _precision_lines(where: str, quantities: Any, clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    n = len(clusters)
    weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, DRAWS, seed, clusters)])
    drawn = {role: average_precision(own["right"], own["certainty"], weights) for role, own in quantities.items()}
    control = {role: float(own["right"].mean()) for role, own in quantities.items()}
    drawn[CHANGE], control[CHANGE] = drawn["tuned"] - drawn["base"], control["tuned"] - control["base"]
    lines = []
    for model, values in drawn.items():
        known = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
        lines.append({
            "group": f"average precision{where}", "model": model, "score": float(values[0]), "low": low, "high": high,
            "control": control[model], "p": _p(known - control[model]), "n": n,
        })  # fmt: skip
    return lines


def _p(beyond: np.ndarray) -> float:
    """Two-sided, from how many resamples lie on either side of the control."""
    if not len(beyond):
        return float("nan")
    sides = (1 + min(int((beyond <= 1e-12).sum()), int((beyond >= -1e-12).sum()))) / (1 + len(beyond))
    return min(1.0, 2 * sides)
