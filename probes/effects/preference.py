"""Where preference tuning moved probability: to the chosen answers, off the rejected ones, or somewhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
from scipy import stats

from probes.effects.answers import sampled_texts
from probes.effects.panel import CHANGE, EffectPanel, columns_by_role, scored_line, table_of
from probes.effects.rewriting import column_of
from probes.replay import counted
from probes.results import Provenance
from probes.retention.many_shot import exchanged_answers
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import continuations_of, logprobs
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode


@method(
    "preference-movement",
    group="effects",
    question="Did preference tuning make chosen answers likelier, or only rejected ones less likely?",
    papers=("Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data",),
    needs=Needs(columns=("answer", "distractor")),
    cost="samples of the base, and three to four scored passes of each model",
    example="--samples 4",
)
def preference_movement(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    samples: Annotated[int, Within(0, None)] = 4,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Change in log-probability (nats, whole answer) of chosen and rejected answers, and of the base's own samples.

    Likelihood displacement: the margin rises while the chosen answer itself becomes less likely. Mode seeking: per
    prompt the rank correlation, over the base's own samples, of how likely the base found a text (per token) and how
    much likelier tuning made it; above 0, mass moved to what was likely already (Tajwar et al. 2024). Give each
    checkpoint (SFT, DPO, on-policy) as the tuned model in turn.

    Args:
        pair: The model before preference tuning, and after it.
        prompts: Rows with the chosen text as answer and the rejected one as distractor.
        samples: Texts sampled from the base per prompt for the mode-seeking index; 0 for none, else 3 or more.
        max_new_tokens: Their length.
        seed: Of samples and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is chosen, rejected, margin, displaced (share of prompts), and mode seeking.

    Raises:
        UserError: A row lacks an answer or a distractor, or the samples are too few to rank.
    """
    check_pair(pair, prompts)
    if samples in (1, 2):
        raise UserError(f"{samples} samples cannot be ranked: give 3 or more, or 0 for no mode-seeking index.")
    rows = Prompts.of(prompts)
    column_of(rows, "distractor", what="the rejected answer")
    unrelated = Prompts([row.__class__(**{**vars(row), "answer": text}) for row, text in zip(
        rows, exchanged_answers(rows, seed), strict=True)])  # fmt: skip
    with counted(pair.base, pair.tuned) as passes:
        logs = {
            role: {
                "chosen": _log_probability(model, rows, "answer", batch_size),
                "rejected": _log_probability(model, rows, "distractor", batch_size),
                "unrelated": _log_probability(model, unrelated, "answer", batch_size),
            }
            for role, model in pair.models.items()
        }
        seeking = _mode_seeking(pair, rows, samples, max_new_tokens, seed, batch_size) if samples else None
    lines = movement_lines(logs, rows.clusters, seed)
    if seeking is not None:
        known = np.isfinite(seeking)
        lines.append(scored_line("mode seeking", CHANGE, seeking[known], 0.0, rows.clusters[known], seed))
    table = table_of(lines)
    return EffectPanel(
        table=table,
        control="the change of another row's chosen answer behind the same prompt; 0 for shares and ranks",
        provenance=Provenance.of("preference_movement", pair, rows, seed=seed, forward_passes=passes.forward),
        values=columns_by_role(logs),
        measured="nats of the whole answer (a share for displaced, a correlation for mode seeking)",
        heading="Where probability moved",
        verdict=_verdict(table.set_index("group")),
    )  # fmt: skip


def _log_probability(model: AdaptedModel, rows: Prompts, column: str, batch_size: int) -> np.ndarray:
    subject = Subject(model.role, model)
    ids = encode(rows, model.tokenizer, model.max_positions)
    return logprobs(subject, ids, continuations_of(rows, subject, column), Work(batch_size)).sum_


def _mode_seeking(
    pair: ModelPair, rows: Prompts, samples: int, max_new_tokens: int, seed: int, batch_size: int
) -> np.ndarray:
    """[prompt] the rank correlation of the base's log-probability per token and its change; NaN without spread."""
    texts = sampled_texts(pair.base, rows, samples, max_new_tokens, seed, batch_size)
    places = [number for number, own in enumerate(texts) for text in dict.fromkeys(own) if text.strip()]
    said = [text for own in texts for text in dict.fromkeys(own) if text.strip()]
    made = Prompts([rows[number].__class__(**{**vars(rows[number]), "answer": text})
                    for number, text in zip(places, said, strict=True)])  # fmt: skip
    per_token = {}
    for role, model in pair.models.items():
        subject = Subject(role, model)
        logs = logprobs(subject, encode(made, model.tokenizer, model.max_positions),
                         continuations_of(made, subject, "answer"), Work(batch_size))  # fmt: skip
        per_token[role] = logs.sum_ / logs.tokens
    return rank_correlations(per_token["base"], per_token["tuned"] - per_token["base"], np.array(places), len(rows))


def rank_correlations(first: np.ndarray, second: np.ndarray, of: np.ndarray, n: int) -> np.ndarray:
    """[prompt] Spearman's rho of the values of each prompt; NaN for fewer than three, 0 where nothing moved."""
    correlations = np.full(n, np.nan)
    for number in range(n):
        own, other = first[of == number], second[of == number]
        if len(own) < 3 or np.ptp(own) == 0:
            continue
        correlations[number] = 0.0 if np.ptp(other) < 1e-9 else float(stats.spearmanr(own, other).statistic)
    return correlations


def movement_lines(logs: dict[str, dict[str, np.ndarray]], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Lines of the changes; ``logs`` are log-probabilities by model and by chosen, rejected, unrelated."""
    moved = {name: logs["tuned"][name] - logs["base"][name] for name in ("chosen", "rejected", "unrelated")}
    margin = moved["chosen"] - moved["rejected"]
    displaced = ((moved["chosen"] < -1e-9) & (margin > 1e-9)).astype(float)
    return [
        scored_line("chosen", CHANGE, moved["chosen"], moved["unrelated"], clusters, seed, of="numbers"),
        scored_line("rejected", CHANGE, moved["rejected"], moved["unrelated"], clusters, seed, of="numbers"),
        scored_line("margin", CHANGE, margin, 0.0, clusters, seed, of="numbers"),
        scored_line("displaced", CHANGE, displaced, 0.0, clusters, seed, of="shares"),
    ]


def _verdict(table: pd.DataFrame) -> str:
    margin, preferred = table.loc["margin"], table.loc["chosen"]
    if not (margin["low"] > 0 and margin["q"] < 0.05):
        return "the margin of chosen over rejected answers did not rise beyond chance"
    if preferred["high"] < 0:
        return (
            f"likelihood displacement: the margin rose by {margin['score']:.3g} nats while chosen answers lost "
            f"{-preferred['score']:.3g} [{-preferred['high']:.3g}, {-preferred['low']:.3g}]"
        )
    return f"the margin rose by {margin['score']:.3g} nats; chosen answers moved by {preferred['score']:+.3g}"
