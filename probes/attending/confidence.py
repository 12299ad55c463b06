"""Where attention became over-confident in tuning: entropy per head, the positions it narrowed on (Hint-Aug's map)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from probes.attending.head_changes import attention_layers, head_changes
from probes.halves import answer_scores
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_pair
from workbench.behaviour.subject import Subject, Work
from workbench.engine.dispatch import layer_readers, on_the_cpu
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionConfidence(ProbeResult):
    """How much narrower each head looks after tuning.

    ``table``: layer, head; ``score``, the fall of attention entropy from base to tuned (as a share of the most there
    can be; positive: narrower) with interval; ``control``, the mean of its layer; ``base``, ``tuned`` (entropies,
    same unit); ``moved`` (total variation distance of the two patterns); ``q`` of a change.
    """

    positions: pd.DataFrame
    """prompt, position, token, gain: the tuned model's attention to it minus the base's, mean over heads and queries
    behind it; the over-confident ones first. ``base``, ``tuned``: those attentions (the token's activation), ``even``:
    what even attention would pay it, ``ignored_base``, ``ignored_tuned``: whether it has less than half of that."""
    activation: dict[str, float]
    """Over all tokens but each prompt's first: score, low, high: share that the tuned model ignores less the base's;
    control: that share's mean over random signs (0), p, and the shares base and tuned."""
    overfit: pd.DataFrame
    """prompt, fall (mean over heads), rise of the answer's log-probability where there are answers: prompts on which
    attention fell most are those that tuning has fitted most closely."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Attention confidence"
    unit: ClassVar[str] = "fall of attention entropy (share of the most possible)"

    def summary(self) -> str:
        """Heads that narrowed and the position they narrowed on most."""
        narrow = self.table[(self.table["q"] < 0.05) & (self.table["score"] > 0)].sort_values("score", ascending=False)
        heads = ", ".join(f"L{row.layer}H{row.head} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}]"
                          for row in narrow.head(3).itertuples()) or "none"  # fmt: skip
        top = self.positions.iloc[0]
        return (
            f"{len(narrow)} of {len(self.table)} heads look narrower after tuning: {heads}; most attention went to "
            f"{top['token']!r} of prompt {top['prompt']} ({top['gain']:+.3f}); {self.activation['base']:.0%} of the "
            f"tokens were ignored before tuning, {self.activation['tuned']:.0%} after ({self.activation['score']:+.2f} "
            f"[{self.activation['low']:+.2f}, {self.activation['high']:+.2f}]); intervals over {self.resampled}; "
            f"control: {self.control}"
        )


@method(
    "attention-confidence",
    group="attention",
    question="Which heads became over-confident in tuning, and about which tokens?",
    papers=(
        "Hint-Aug: Drawing Hints from Foundation Vision Transformers Towards Boosted Few-Shot Parameter-Efficient "
        "Tuning",
        "CoMat: Aligning Text-to-Image Diffusion Model with Image-to-Text Concept Matching",
    ),
    cost="one pass of each model per prompt, with attention patterns",
    example="--layers 0,1",
    any_adapter="whether a head's attention narrowed or widened at all",
)
def attention_confidence(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layers: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttentionConfidence:
    """Compare attention of base and tuned model on the same prompts: entropy per head, and who gained attention.

    Entropy of a query over the keys that it can see is divided by the logarithm of their number, so that 1 is even
    attention and 0 one key alone. Positions are ranked by the attention that they gained (Hint-Aug's over-confident
    patches, which it feeds back from the foundation model). Base and tuned are read in one pass per prompt each.

    CoMat finds that an image model renders badly the words of a prompt that its attention leaves out. Carried over from
    it is each prompt token's attention activation before and after tuning, and which tokens are ignored; its captioning
    model and its training are not.

    Args:
        pair: Both models, of one shape.
        prompts: What both read; with answers, the rise of each answer stands beside its prompt's fall.
        layers: Which layers; all by default.
        seed: Of resampling and tests.

    Returns:
        An :class:`AttentionConfidence`. A base with itself changed nowhere.

    Raises:
        UserError: The models have other heads, no layer has any, or every prompt is one token.
    """
    check_pair(pair, prompts)
    places = attention_layers(pair, layers)
    rows = Prompts.of(prompts)
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    if not places or max(map(len, ids)) < 2:
        raise UserError("There is no attention to compare: give layers with heads and prompts of two tokens or more.")
    with counted(pair.base, pair.tuned) as passes:
        read = [_compared(pair, row, places) for row in _counted(ids, progress or Silent())]
        rise = _answer_rise(pair, rows)
    clusters = rows.clusters
    return AttentionConfidence(
        table=_table(read, places, clusters, seed),
        control="the mean over the heads of the layer",
        provenance=Provenance.of("attention_confidence", pair, rows, seed=seed, forward_passes=passes.forward),
        positions=(positions := _positions(read, ids, pair.tokenizer)),
        activation=_activation(positions, clusters, seed),
        overfit=pd.DataFrame({
            "prompt": range(len(ids)), "fall": [float((own.base - own.tuned).mean()) for own in read], "rise": rise,
        }),
        resampled=units_of(clusters),
    )  # fmt: skip


@dataclass
class _Read:
    """One prompt in both models."""

    base: Float[np.ndarray, "layer head"]
    tuned: Float[np.ndarray, "layer head"]
    moved: Float[np.ndarray, "layer head"]
    received: Float[np.ndarray, "two pos"]
    """Attention that each token gets of the queries behind it, in base and tuned model."""
    even: Float[np.ndarray, " pos"]


def _counted(ids: list[list[int]], bar: Progress) -> Iterator[list[int]]:
    bar.start("attention", len(ids))
    for row in ids:
        yield row
        bar.advance()
    bar.finish()


def read_patterns(model: AdaptedModel, row: list[int], layers: Sequence[int]) -> Float[Tensor, "layer head query key"]:
    patterns: dict[int, Tensor] = {}
    with model.hooked(layer_readers("pattern", layers, patterns, on_the_cpu)):
        model.forward(torch.tensor([row]), logits=None)
    return torch.stack([patterns[layer][0] for layer in layers])


def entropy_share(pattern: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head query"]:
    """Entropy of each query's attention over the logarithm of the keys it can see; 0 for the first query."""
    seen = torch.arange(1, pattern.shape[-2] + 1).double()
    entropy = -torch.special.xlogy(pattern.double(), pattern.double()).sum(-1)
    return torch.where(seen > 1, entropy / seen.log().clamp(min=1e-9), 0.0)


def _compared(pair: ModelPair, row: list[int], layers: Sequence[int]) -> _Read:
    base, tuned = (read_patterns(model, row, layers) for model in (pair.base, pair.tuned))
    narrow = [entropy_share(side)[..., 1:].mean(-1).numpy() if len(row) > 1 else np.zeros(side.shape[:2])
              for side in (base, tuned)]  # fmt: skip
    moved = (tuned - base).abs().sum(-1).mean(-1).double().numpy() / 2
    behind = torch.arange(len(row), 0, -1)  # queries that can see each key
    received = torch.stack([side.mean((0, 1)).sum(0) / behind for side in (base, tuned)]).double().numpy()
    evenly = torch.ones(len(row), len(row)).tril() / torch.arange(1, len(row) + 1)[:, None]
    return _Read(narrow[0], narrow[1], moved, received, (evenly.sum(0) / behind).double().numpy())


def _answer_rise(pair: ModelPair, rows: Prompts) -> list[float]:
    if not all(row.answer for row in rows):
        return [float("nan")] * len(rows)
    base, tuned = (answer_scores(Subject(role, model), rows, Work()) for role, model in pair.models.items())
    return [float(value) for value in tuned - base]


def _table(read: list[_Read], layers: Sequence[int], clusters: np.ndarray, seed: int) -> pd.DataFrame:
    falls = np.stack([prompt.base - prompt.tuned for prompt in read])
    means = {
        name: np.mean([getattr(prompt, name) for prompt in read], axis=0).reshape(-1)
        for name in ("base", "tuned", "moved")
    }
    return with_q(head_changes(falls, layers, clusters, seed).assign(**means))


def _positions(read: list[_Read], ids: list[list[int]], tokenizer: Any) -> pd.DataFrame:
    lines = [
        {"prompt": prompt, "position": place, "token": tokenizer.decode([ids[prompt][place]]),
         "gain": float(tuned - base), "base": float(base), "tuned": float(tuned), "even": float(even),
         "ignored_base": bool(base < even / 2), "ignored_tuned": bool(tuned < even / 2)}
        for prompt, attention in enumerate(read)
        for place, (base, tuned, even) in enumerate(zip(*attention.received, attention.even, strict=True))
    ]  # fmt: skip
    return pd.DataFrame(lines).sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def _activation(positions: pd.DataFrame, clusters: np.ndarray, seed: int) -> dict[str, float]:
    """Share of ignored tokens in both models, the first of each prompt (a sink) left out."""
    shares = positions[positions["position"] > 0].groupby("prompt")[["ignored_base", "ignored_tuned"]].mean()
    base, tuned = (shares[name].to_numpy(float) for name in ("ignored_base", "ignored_tuned"))
    own = clusters[shares.index.to_numpy()]
    change = beside_control(tuned - base, np.zeros(len(base)), own, seed=seed)
    return {**change, "base": float(base.mean()), "tuned": float(tuned.mean())}
