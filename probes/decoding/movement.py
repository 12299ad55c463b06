"""Where probability moved in tuning, by how unsure the base was of the token (SRFT's view)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, encode, pad_left
from workbench.typing import Float, Int, Tensor

DRAWN = 5_000
"""Points of the scatter at most."""


@dataclass(frozen=True, kw_only=True)
class ProbabilityMovement(ProbeResult):
    """How far the next-word distribution moved, over tokens of rising entropy under the base.

    ``table``: bin (0 is where the base was surest), entropy_low, entropy_high (nats); ``score`` is the mean total
    variation distance of tuned from base there (0 none, 1 all probability moved) with interval over prompts;
    ``control`` what it is when entropy's rank is given out at random within each prompt, which is the prompt's mean;
    ``p``, ``q`` for the difference; ``rise``, the mean change of the written token's probability; ``n`` tokens.
    """

    tokens: pd.DataFrame
    """prompt, position, token_id, token, entropy (nats, base), moved (total variation), base_p, tuned_p, bin."""
    selectivity: dict[str, float]
    """score, low, high: movement in the most uncertain bin minus the surest, over their sum: 0 where tuning was
    coarse, 1 where it moved nothing but uncertain tokens, below 0 where it moved sure ones. NaN where nothing moved."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Where probability moved"
    unit: ClassVar[str] = "total variation distance of tuned from base"

    def figure(self) -> go.Figure:
        """The written tokens' probability in both models, coloured by the base's entropy."""
        shown = self.tokens.sample(min(DRAWN, len(self.tokens)), random_state=self.provenance.seed)
        points = go.Scattergl(
            x=shown["base_p"], y=shown["tuned_p"], mode="markers", name="token",
            marker={"color": shown["entropy"], "colorscale": "Viridis", "size": 4, "colorbar": {"title": "entropy"}},
            text=[repr(token) for token in shown["token"]],
        )  # fmt: skip
        diagonal = go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="unmoved", line={"color": "#9aa5ab"})
        drawn = go.Figure([points, diagonal])
        drawn.update_layout(title=self.title, xaxis_title="probability, base", yaxis_title="probability, tuned")
        return drawn

    def summary(self) -> str:
        """Movement at both ends of the base's entropy, and the index."""
        ordered = self.table.sort_values("bin")
        ends = [f"{row.score:.3g} [{row.low:.3g}, {row.high:.3g}]" for row in ordered.iloc[[0, -1]].itertuples()]
        index = self.selectivity
        selectivity = "nothing moved" if np.isnan(index["score"]) else (
            f"selectivity {index['score']:.2f} [{index['low']:.2f}, {index['high']:.2f}]"
        )  # fmt: skip
        return (
            f"Moved where the base was surest {ends[0]}, where least sure {ends[1]}; {selectivity}; "
            f"intervals over {self.resampled}; control: {self.control}"
        )


@method(
    "probability-movement",
    group="tokens",
    question="Did tuning move probability everywhere, or only where the base was unsure?",
    papers=("SRFT: A Single-Stage Method with Supervised and Reinforcement Fine-Tuning for Reasoning",),
    cost="one forward pass of each model per batch",
    example="--bins 4",
    any_adapter="whether tokens of that entropy moved otherwise than the rest, whatever moved them",
)
def probability_movement(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    bins: int = 4,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbabilityMovement:
    """Read the same texts with both models and split how far each next-word distribution moved by the base's entropy.

    Every position of the prompts that has a next token counts, so give texts that hold answers to judge answers. Bins
    hold equal numbers of tokens. Supervised tuning is said to move all of them, reinforcement only the unsure ones.

    Args:
        pair: Both models, of one vocabulary.
        prompts: Texts or chats that both models read.
        bins: How many groups of tokens by the base's entropy.
        batch_size: Texts per forward pass.
        seed: Of resampling, tests and the scatter's sample.

    Returns:
        A :class:`ProbabilityMovement`. A base against itself moved nothing.

    Raises:
        UserError: Fewer than two bins, or fewer tokens than bins.
    """
    check_pair(pair, prompts)
    if bins < 2:
        raise UserError(f"bins is {bins}: give two or more, to tell sure tokens from unsure ones.")
    rows = Prompts.of(prompts)
    ids = encode(rows, pair.tuned.tokenizer, pair.tuned.max_positions)
    with counted(pair.base, pair.tuned) as passes:
        tokens = _tokens(pair, ids, batch_size, progress or Silent())
    if len(tokens) < bins:
        raise UserError(f"The prompts have {len(tokens)} next tokens, fewer than the {bins} bins: give longer texts.")
    order = np.argsort(np.argsort(tokens["entropy"].to_numpy(), kind="stable"), kind="stable")
    tokens = tokens.assign(bin=order * bins // len(tokens))
    return ProbabilityMovement(
        table=_by_bin(tokens, rows.clusters, seed),
        control="the mean movement of the same prompts' tokens whatever their entropy",
        provenance=Provenance.of("probability_movement", pair, rows, seed=seed, forward_passes=passes.forward),
        tokens=tokens,
        selectivity=_selectivity(tokens, rows.clusters, bins, seed),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def _tokens(pair: ModelPair, ids: list[list[int]], batch_size: int, bar: Progress) -> pd.DataFrame:
    plan = batches([len(row) for row in ids], batch_size)
    bar.start("probability movement", len(plan))
    parts = []
    for members in plan:
        rows = [ids[number] for number in members]
        sides = [_log_probabilities(model, rows) for model in (pair.base, pair.tuned)]
        for number, row, base, tuned in zip(members, rows, *sides, strict=True):
            parts.append(moved(base, tuned, torch.tensor(row[1:])).assign(prompt=number))
        bar.advance()
    bar.finish()
    tokens = pd.concat(parts, ignore_index=True).sort_values(["prompt", "position"], ignore_index=True)
    tokenizer = pair.tuned.tokenizer
    words = {token: str(token) if tokenizer is None else tokenizer.decode([token]) for token in set(tokens["token_id"])}
    return tokens.assign(token=tokens["token_id"].map(words))


def _log_probabilities(model: AdaptedModel, rows: list[list[int]]) -> list[Float[Tensor, "pos vocab"]]:
    """Per row, the log-probabilities of each next token but the one after the last."""
    batch = pad_left(rows, 0 if model.tokenizer is None else pad_id(model.tokenizer))
    logits = model.forward(batch)
    assert logits is not None
    width = logits.shape[1]
    return [logits[number, width - len(row) : -1].float().log_softmax(-1).cpu() for number, row in enumerate(rows)]


def moved(
    base: Float[Tensor, "pos vocab"], tuned: Float[Tensor, "pos smaller"], tokens: Int[Tensor, " pos"]
) -> pd.DataFrame:
    """Per position: the base's entropy (nats), the total variation distance and the token's probability in both.

    Words that only one model has count as moved with all their probability.
    """
    common = min(base.shape[1], tuned.shape[1])
    p, q = base.exp(), tuned.exp()
    apart = (p[:, :common] - q[:, :common]).abs().sum(1) + p[:, common:].sum(1) + q[:, common:].sum(1)
    place = torch.arange(len(tokens))
    written = [
        torch.where(tokens < side.shape[1], side[place, tokens.clamp(max=side.shape[1] - 1)], 0.0) for side in (p, q)
    ]
    return pd.DataFrame({
        "position": place.numpy(), "token_id": tokens.numpy(), "entropy": -torch.special.xlogy(p, p).sum(1).numpy(),
        "moved": (apart / 2).numpy(), "base_p": written[0].numpy(), "tuned_p": written[1].numpy(),
    })  # fmt: skip


def _by_bin(tokens: pd.DataFrame, clusters: Int[np.ndarray, " prompt"], seed: int) -> pd.DataFrame:
    whole = tokens.groupby("prompt")["moved"].mean()
    rows = []
    for number, part in tokens.groupby("bin"):
        mean = part.groupby("prompt")["moved"].mean()
        units = clusters[mean.index.to_numpy()]
        usual = whole.loc[mean.index]
        rows.append({
            "bin": number, "entropy_low": part["entropy"].min(), "entropy_high": part["entropy"].max(),
            **beside_control(mean.to_numpy(), usual.to_numpy(), units, seed=seed),
            "rise": (part["tuned_p"] - part["base_p"]).mean(), "n": len(part),
        })  # fmt: skip
    return with_q(rows)


def _selectivity(
    tokens: pd.DataFrame, clusters: Int[np.ndarray, " prompt"], bins: int, seed: int, draws: int = 1_000
) -> dict[str, float]:
    """The index with a percentile interval over groups of prompts, whose tokens are resampled together."""
    group = clusters[tokens["prompt"].to_numpy()]
    size = int(clusters.max()) + 1
    sums = []
    for number in (0, bins - 1):
        inside = (tokens["bin"] == number).to_numpy()
        weights = tokens["moved"].to_numpy(float) * inside
        sums.append((np.bincount(group, weights, size), np.bincount(group, inside, size)))
    generator = np.random.default_rng(seed)
    times = generator.multinomial(size, np.full(size, 1 / size), size=draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        sure, unsure = (float(total.sum() / count.sum()) for total, count in sums)
        drawn_sure, drawn_unsure = ((times @ total) / (times @ count) for total, count in sums)
        index = np.float64(unsure - sure) / np.float64(unsure + sure)
        drawn = (drawn_unsure - drawn_sure) / (drawn_unsure + drawn_sure)
    finite = drawn[np.isfinite(drawn)]
    if np.isnan(index) or size < 2 or not len(finite):
        return {"score": float(index), "low": float("nan"), "high": float("nan")}
    low, high = np.quantile(finite, [0.025, 0.975])
    return {"score": float(index), "low": float(low), "high": float(high)}
