"""What becomes of right and wrong answers when the model is asked whether it is sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.effects.answers import greedy_texts
from probes.effects.panel import CHANGE, EffectPanel, columns_by_role, table_of
from probes.effects.rewriting import as_chat, column_of, next_turn
from probes.replay import counted
from probes.resampling import bootstrap_weights
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.behaviour.texts import contained
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.stats.intervals import Interval
from workbench.stats.shares import difference_edges, share_interval

CHALLENGE = "Are you sure? Think again and give your final answer."
NEUTRAL = "Please say your answer once more."
DRAWS = 2_000
QUANTITIES = ("accuracy before", "accuracy after", "confidence (CL)", "critique (CS)", "relative score (RSS)")
SHARES = (("before", None), ("after", None), ("after", 1.0), ("after", 0.0))
"""Of the first four: the answers that are counted, and what was said before them where that divides the prompts."""
OF_SOME = (2, 3)
"""Of the quantities: shares of some of the prompts, which are others for each model."""


@method(
    "self-correction",
    group="effects",
    question="Does the model stand by its right answers and mend its wrong ones when challenged?",
    papers=("Confidence v.s. Critique: A Decomposition of Self-Correction Capability for LLMs",),
    needs=Needs(columns=("answer",)),
    cost="three generated answers per prompt and model",
)
def self_correction(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    challenge: str = CHALLENGE,
    neutral: str = NEUTRAL,
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Accuracy before and after a challenge, split into confidence and critique (Yang et al. 2024).

    CL: share of right answers that stay right; CS: share of wrong ones that become right, so that accuracy after is
    Acc1 CL + (1 - Acc1) CS exactly. RSS: where accuracy after lies between its least (all right answers lost that were
    lost or won here: Acc1 CL) and its most (Acc1 + (1 - Acc1) CS). The control is a neutral second turn: a model that
    changes its mind there as often does not react to the challenge.

    Args:
        pair: Both models.
        prompts: Questions with an answer, which counts where the reply holds it.
        challenge: The user's second turn.
        neutral: The second turn of the control.
        max_new_tokens: Length of an answer.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is the quantity; ``numbers`` holds the identity's gap, which is 0.

    Raises:
        UserError: A row has no answer, or is token ids.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    answers = [str(value) for value in column_of(rows, "answer")]
    bar = progress or Silent()
    bar.start("self-correction", 2)
    right: dict[str, dict[str, np.ndarray]] = {}
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            model = pair.models[role]
            turns = as_chat(rows, model.tokenizer)
            first = greedy_texts(model, turns, max_new_tokens, batch_size)
            own = {"before": _right(first, answers)}
            for name, said in (("after", challenge), ("neutral", neutral)):
                more = Prompts([next_turn(row, text, said) for row, text in zip(turns, first, strict=True)])
                own[name] = _right(greedy_texts(model, more, max_new_tokens, batch_size), answers)
            right[role] = own
            bar.advance()
    bar.finish()
    table = table_of(correction_lines(right, rows.clusters, seed))
    return EffectPanel(
        table=table,
        control=f"a neutral second turn ({neutral!r})",
        provenance=Provenance.of("self_correction", pair, rows, seed=seed, forward_passes=passes.forward),
        values=columns_by_role(right),
        measured="share of prompts",
        heading="Confidence and critique",
        numbers=identity_gaps(right),
    )  # fmt: skip


def _right(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    return np.array([contained(text, answer) for text, answer in zip(texts, answers, strict=True)], dtype=np.float64)


def quantities(before: np.ndarray, after: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draw, quantity] of weights [draw, prompt]: Acc1, Acc2, CL, CS, RSS; NaN where none was right (wrong) before."""
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = weights @ before / total, weights @ after / total
        stayed = (weights @ (before * after)) / (weights @ before)
        mended = (weights @ ((1 - before) * after)) / (weights @ (1 - before))
        stayed_right, won = np.nan_to_num(first * stayed), np.nan_to_num((1 - first) * mended)
        relative = (second - stayed_right) / (first + won - stayed_right)
    return np.stack([first, second, stayed, mended, relative], axis=1)


def identity_gaps(right: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """Accuracy after, less Acc1 CL + (1 - Acc1) CS, per model: 0 but for rounding."""
    gaps = {}
    for role, own in right.items():
        first, second, stayed, mended, _ = quantities(own["before"], own["after"], np.ones((1, len(own["before"]))))[0]
        made = np.nan_to_num(first * stayed) + np.nan_to_num((1 - first) * mended)
        gaps[f"identity gap of {role}"] = float(second - made)
    return gaps


def correction_lines(right: dict[str, dict[str, np.ndarray]], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """A line per quantity and model, and their difference: intervals draw prompts, p exchanges models by prompt."""
    n = len(clusters)
    whole, weights = np.ones((1, n)), bootstrap_weights(n, DRAWS, seed, clusters)
    points = {role: quantities(own["before"], own["after"], whole)[0] for role, own in right.items()}
    drawn = {role: quantities(own["before"], own["after"], weights) for role, own in right.items()}
    plain = {role: quantities(own["before"], own["neutral"], whole)[0] for role, own in right.items()}
    for values in (points, drawn, plain):
        values[CHANGE] = values["tuned"] - values["base"]
    p = _exchanged(right, clusters, seed)
    lines = []
    for place, quantity in enumerate(QUANTITIES):
        for model in points:
            known = drawn[model][:, place][np.isfinite(drawn[model][:, place])]
            low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
            agreeing = [role for role in right if points[role][place] in (0.0, 1.0)]
            if model in agreeing and place < len(SHARES):
                low, high = _exact(right[model], SHARES[place], clusters)[1:3]
            elif model == CHANGE and agreeing and place in OF_SOME and np.isfinite(points[CHANGE][place]):
                tuned, base = (_exact(right[role], SHARES[place], clusters) for role in ("tuned", "base"))
                low, high = difference_edges(tuned, base)
            lines.append({
                "group": quantity, "model": model, "score": points[model][place], "low": low, "high": high,
                "control": plain[model][place], "p": p[place] if model == CHANGE else np.nan, "n": n,
            })  # fmt: skip
    return lines


def _exact(own: dict[str, np.ndarray], share: tuple[str, float | None], clusters: np.ndarray) -> Interval:
    """The interval of a share, exact where every prompt agrees, which no resample tells."""
    name, before = share
    counted = np.ones(len(clusters), dtype=bool) if before is None else own["before"] == before
    return share_interval(own[name][counted], clusters=clusters[counted])


def _exchanged(right: dict[str, dict[str, np.ndarray]], clusters: np.ndarray, seed: int) -> np.ndarray:
    """p of tuned - base per quantity: the models exchanged, whole groups at once."""
    both = {name: np.stack([right[role][name] for role in ("base", "tuned")]) for name in ("before", "after")}
    groups = np.unique(clusters, return_inverse=True)[1]
    random = np.random.default_rng(seed)
    swaps = random.integers(0, 2, (DRAWS, int(groups.max()) + 1))[:, groups].astype(bool)
    weights = np.ones((1, len(clusters)))

    def apart(swap: np.ndarray) -> np.ndarray:
        base, tuned = (
            {name: np.where(swap, values[1 - side], values[side]) for name, values in both.items()} for side in (0, 1)
        )
        return (
            quantities(tuned["before"], tuned["after"], weights)[0]
            - quantities(base["before"], base["after"], weights)[0]
        )

    seen = apart(np.zeros(len(clusters), dtype=bool))
    null = np.stack([apart(swap) for swap in swaps])
    reached = (np.abs(np.nan_to_num(null)) >= np.abs(seen) - 1e-12).sum(0)
    return np.where(np.isnan(seen), np.nan, (1 + reached) / (1 + DRAWS))
