"""token_relevance: which tokens of a prompt the task needs (TR-PTS's other half), checked by leaving the rest out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from probes.attending.confidence import read_patterns
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.behaviour.continuations import continuations_of, logprobs
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float

KEPT = ("most relevant", "least relevant")


@dataclass(frozen=True, kw_only=True)
class TokenRelevance(ProbeResult):
    """One row per choice of tokens (``module``): the most relevant ones left, and the least relevant ones left.

    ``score``: change of the answer's log-probability (nats per token) when only those tokens of the prompt are left,
    the mean over prompts; ``control``: with as many random tokens left, ``q`` of the difference; ``left``: share of the
    tokens that are left. The first and the last token always stay. ``tokens``: prompt, position, token, relevance, and
    whether it is among the most relevant.
    """

    tokens: pd.DataFrame
    resampled: str = "prompts"

    title: ClassVar[str] = "Tokens that the task needs"
    unit: ClassVar[str] = "change of the answer's log-probability (nats per token)"

    def summary(self) -> str:
        said = "; ".join(
            f"{row['module']} {row['score']:+.3g} nats [{row['low']:+.3g}, {row['high']:+.3g}] (random "
            f"{row['control']:+.3g}, q = {row['q']:.2g})"
            for _, row in self.table.iterrows()
        )
        left = self.table["left"].iloc[0]
        return f"With {left:.0%} of the tokens left: {said}; over {self.resampled}. Control: {self.control}."


@method(
    "token-relevance",
    group="attention",
    question="Which tokens of the prompts does the task need, and does attention tell which?",
    papers=("TR-PTS: Task-Relevant Parameter and Token Selection for Efficient Tuning",),
    needs=Needs(columns=("answer",)),
    cost="one pass with attention patterns per prompt, and a scored pass per choice and random draw",
)
def token_relevance(
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    share: Annotated[float, Within(0, 1)] = 0.5,
    draws: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> TokenRelevance:
    """Rank a prompt's tokens by the attention of its last one, over all heads and layers, and leave out the rest.

    TR-PTS selects the parameters to tune by Fisher information in each layer (``tuning_trial``, rule "fisher") and the
    tokens by the attention that the class token pays them. A language model's last prompt token stands in for that.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: Rows with an answer.
        share: Share of the tokens between the first and the last that are left.
        draws: Random choices of as many tokens.
        batch_size: Prompts per scored pass.
        seed: Of the random choices and the intervals.

    Returns:
        A :class:`TokenRelevance`.

    Raises:
        UserError: A row without answer, a model without attention, or prompts of fewer than four tokens.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    places = list(model.hub.geometry.attention_layers)
    ids = encode(rows, model.tokenizer, model.max_positions)
    if not places:
        raise UserError("This model has no attention to rank tokens by: give one with attention layers.")
    if short := [number for number, row in enumerate(ids) if len(row) < 4]:
        raise UserError(f"Prompt {short[0]} has {len(ids[short[0]])} tokens: give prompts of four tokens or more.")
    answers = continuations_of(rows, Subject(model.role, model), "answer")
    random = np.random.default_rng(seed)

    def known(order: Sequence[np.ndarray]) -> Float[np.ndarray, " prompt"]:
        left = [_left(row, ranks, share) for row, ranks in zip(ids, order, strict=True)]
        logs = logprobs(Subject(model.role, model), left, answers, work)
        return logs.sum_ / logs.tokens

    with counted(model) as passes:
        weights = [read_patterns(model, row, places).mean((0, 1))[-1].double().numpy() for row in ids]
        whole = logprobs(Subject(model.role, model), ids, answers, work)
        chances = [known([random.random(len(row)) for row in ids]) for _ in range(draws)]
        sides = dict(zip(KEPT, (known(weights), known([-weight for weight in weights])), strict=True))
    before = whole.sum_ / whole.tokens
    chance = np.mean(chances, axis=0) - before if draws else np.zeros(len(rows))
    table = pd.DataFrame([
        {"module": name, **_row(own - before, chance, rows, seed), "left": _share_left(ids, share)}
        for name, own in sides.items()
    ])  # fmt: skip
    return TokenRelevance(
        table=with_q(table, keep_p=False),
        control=f"as many random tokens left ({draws} draws)",
        provenance=Provenance.of("token_relevance", model, rows, seed=seed, forward_passes=passes.forward),
        tokens=_tokens(ids, weights, share, model),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def _chosen(weights: np.ndarray, share: float) -> np.ndarray:
    """Places of the first, the last, and the ``share`` of those between with the largest weight, in order."""
    inner = np.arange(1, len(weights) - 1)
    count = max(1, round(share * len(inner)))
    best = inner[np.argsort(-weights[inner], kind="stable")[:count]]
    return np.array([0, *sorted(best.tolist()), len(weights) - 1])


def _left(row: list[int], weights: np.ndarray, share: float) -> list[int]:
    return [row[int(place)] for place in _chosen(weights, share)]


def _share_left(ids: list[list[int]], share: float) -> float:
    return float(np.mean([len(_chosen(np.zeros(len(row)), share)) / len(row) for row in ids]))


def _row(change: np.ndarray, chance: np.ndarray, rows: Prompts, seed: int) -> dict[str, float]:
    return {**beside_control(change, chance, rows.clusters, seed=seed), "n": len(change)}


def _tokens(ids: list[list[int]], weights: list[np.ndarray], share: float, model: AdaptedModel) -> pd.DataFrame:
    return pd.DataFrame([
        {"prompt": number, "position": place, "token": model.tokenizer.decode([token]),
         "relevance": float(own[place]), "chosen": place in places}
        for number, (row, own) in enumerate(zip(ids, weights, strict=True))
        for places in [set(_chosen(own, share).tolist())]
        for place, token in enumerate(row)
    ])  # fmt: skip
