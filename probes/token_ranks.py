"""Which tokens tuning changed: what one model writes, ranked by the other (URIAL, Lin et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.call_settings import call_settings
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, scored_share, with_q
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.token_rows import check_ids
from workbench.progress import Progress, Silent, listening
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode, pad_left
from workbench.typing import Bool, Float, Int, Tensor

KINDS = ("unshifted", "marginal", "shifted")
"""Rank 1; ranks 2 and 3; beyond."""
TUNED_WRITES, BASE_WRITES = "tuned writes, base judges", "base writes, tuned judges"


@dataclass(frozen=True, kw_only=True)
class TokenShift(ProbeResult):
    """Ranks of every written token under the other model.

    ``table``: per position of the response (tuned writes, base judges), the share of shifted tokens over prompts;
    its control is the same share when the writer judges itself: the numerical noise floor.
    """

    tokens: pd.DataFrame
    """direction, prompt, position (in the response), token_id, token, rank, probability, kl (nats, writer from
    judge), kind, special (counted in no share)."""
    shares: pd.DataFrame
    """direction, kind, share of the response's tokens, low, high: interval over prompts or their groups."""
    resampled: str = "prompts"
    """What intervals and tests draw, and how many there are: prompts, or groups of prompts."""

    title: ClassVar[str] = "Token shift"
    unit: ClassVar[str] = "share of shifted tokens"

    def figure(self) -> go.Figure:
        """The shares of both directions, and how shift and KL go with the position in the response."""
        from workbench.figures.tokens import shift_figure

        return shift_figure(self.shares, self.table, self.tokens)

    def summary(self) -> str:
        said = []
        for direction, rows in self.shares.groupby("direction", sort=False):
            parts = (f"{row.share:.1%} {row.kind} [{row.low:.1%}, {row.high:.1%}]" for row in rows.itertuples())
            said.append(f"{direction}: {', '.join(parts)}")
        return f"{'; '.join(said)}; intervals over {self.resampled}; control: {self.control}"


@method(
    "token-shift",
    group="tokens",
    question="Which of the words that one model writes would the other not have written?",
    papers=("The Unlocking Spell on Base LLMs: Rethinking Alignment via In-Context Learning",),
    cost="one generation and two forward passes per batch and direction",
)
def token_shift(
    pair: Any,
    prompts: Prompts | Sequence[Any],
    *,
    base_prompts: Prompts | Sequence[Any] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> TokenShift:
    """Each model continues the prompts greedily and the other ranks every token written.

    ``base_prompts``: what the base reads instead (a plain version of a chat), row by row; only response tokens are
    compared, as token ids. Ranks break ties by id. Token ids that only one vocabulary has are left out of the
    distributions; end-of-text and other special tokens enter no share. Intervals and tests are over prompts, or over
    their groups where ``prompts`` have some. Cost per batch and direction: one generation and two forward passes.
    Raises :class:`UserError` when nothing but special tokens is written.

    Args:
        base_prompts: What the base reads instead, row by row: a plain version of a chat.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    other = rows if base_prompts is None else Prompts.of(base_prompts)
    if len(other) != len(rows):
        raise UserError(f"There are {len(rows)} prompts and {len(other)} for the base; give one for each.")
    tuned = _Side(pair.tuned, encode(rows, pair.tuned.tokenizer, pair.tuned.max_positions))
    base = _Side(pair.base, encode(other, pair.base.tokenizer or pair.tuned.tokenizer, pair.base.max_positions))
    check_ids(tuned.ids, {"tuned": pair.tuned})
    check_ids(base.ids, {"base": pair.base})
    bar = progress or Silent()
    bar.start("token shift", 2 * len(rows))
    frames = []
    with counted(pair.base, pair.tuned) as passes:
        for name, writer, judge in ((TUNED_WRITES, tuned, base), (BASE_WRITES, base, tuned)):
            for start in range(0, len(rows), batch_size):
                members = range(start, min(start + batch_size, len(rows)))
                with listening(progress, len(members)):
                    frames.append(_one_batch(writer, judge, members, max_new_tokens).assign(direction=name))
                bar.advance(len(members))
    bar.finish()
    tokens = pd.concat(frames, ignore_index=True)
    return TokenShift(
        table=_by_position(tokens[tokens["direction"] == TUNED_WRITES], rows.clusters, seed),
        control="the writer judging itself (numerical noise floor)",
        provenance=Provenance.of(
            "token_shift",
            pair,
            rows,
            seed=seed,
            forward_passes=passes.forward,
            settings=call_settings(None, base_prompts=None if base_prompts is None else other),
        ),
        tokens=tokens.drop(columns="own_rank"),
        shares=_shares(tokens, rows.clusters, seed),
        resampled=units_of(rows.clusters),
    )


def ranks(logits: Float[Tensor, "pos vocab"], tokens: Int[Tensor, " pos"]) -> Int[Tensor, " pos"]:
    """The rank (1 is most likely) of each token; among equal logits the smaller id comes first."""
    own = logits.gather(1, tokens[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (ids < tokens[:, None]))
    return before.sum(1) + 1


def kinds(rank: Int[Tensor, " pos"]) -> list[str]:
    """ "unshifted", "marginal" or "shifted" for each rank."""
    return [KINDS[0 if value == 1 else 1 if value <= 3 else 2] for value in rank.tolist()]


@dataclass(frozen=True)
class _Side:
    model: AdaptedModel
    ids: list[list[int]]

    def responses(self, members: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations up to and with the end-of-text token."""
        batch = pad_left([self.ids[row] for row in members], _padding(self.model))
        new = self.model.generate_ids(batch, max_new_tokens=max_new_tokens)[:, batch.input_ids.shape[1] :]
        ends = _end_ids(self.model)
        return [_until(row, ends) for row in new.tolist()]

    def logits(self, members: Sequence[int], responses: list[list[int]]) -> list[Float[Tensor, "pos vocab"]]:
        """Per row, the logits that predicted each response token."""
        whole = [self.ids[row] + response for row, response in zip(members, responses, strict=True)]
        logits = self.model.forward(pad_left(whole, _padding(self.model)))
        assert logits is not None
        return [logits[n, -len(response) - 1 : -1].float().cpu() for n, response in enumerate(responses)]


def _one_batch(writer: _Side, judge: _Side, members: Sequence[int], max_new_tokens: int) -> pd.DataFrame:
    responses = writer.responses(members, max_new_tokens)
    common = min(writer.model.vocab_size, judge.model.vocab_size)
    special = torch.tensor(sorted(_special_ids(writer.model) | _special_ids(judge.model)))
    parts = []
    both = zip(members, responses, writer.logits(members, responses), judge.logits(members, responses), strict=True)
    for prompt, response, said, judged in both:
        tokens = torch.tensor(response, dtype=torch.long)
        parts.append(_judge(tokens, said[:, :common], judged[:, :common], special, writer.model).assign(prompt=prompt))
    return pd.concat(parts, ignore_index=True)


def _judge(
    tokens: Int[Tensor, " pos"],
    said: Float[Tensor, "pos vocab"],
    judged: Float[Tensor, "pos vocab"],
    special: Int[Tensor, " special"],
    writer: AdaptedModel,
) -> pd.DataFrame:
    known = tokens < said.shape[1]
    safe = tokens.clamp(max=said.shape[1] - 1)
    p, q = said.log_softmax(-1), judged.log_softmax(-1)
    rank = ranks(judged, safe)
    return pd.DataFrame(
        {
            "position": range(len(tokens)),
            "token_id": tokens.tolist(),
            "token": [writer.tokenizer.decode([token]) for token in tokens.tolist()],
            "rank": rank.tolist(),
            "own_rank": ranks(said, safe).tolist(),
            "probability": q.exp().gather(1, safe[:, None])[:, 0].tolist(),
            "kl": (p.exp() * (p - q).nan_to_num()).sum(1).clamp_min(0).tolist(),
            "kind": kinds(rank),
            "special": _outside(tokens, special, known).tolist(),
        }
    )


def _outside(tokens: Int[Tensor, " pos"], special: Int[Tensor, " special"], known: Bool[Tensor, " pos"]) -> Tensor:
    return torch.isin(tokens, special) | ~known


def _shares(tokens: pd.DataFrame, clusters: Int[np.ndarray, " prompt"], seed: int) -> pd.DataFrame:
    """Shares per direction, weighted by prompt, with an interval over clusters of prompts."""
    counted = tokens[~tokens["special"]]
    if counted.empty:
        raise UserError("Both models answered with special tokens only, so there is nothing to compare.")
    rows = []
    for direction, part in counted.groupby("direction", sort=False):
        for kind in KINDS:
            per_prompt = (part["kind"] == kind).groupby(part["prompt"]).mean()
            units = clusters[per_prompt.index.to_numpy()]
            share = scored_share(per_prompt.to_numpy(float), name="share", seed=seed, clusters=units)
            rows.append({"direction": direction, "kind": kind, **share})
    return pd.DataFrame(rows)


def _by_position(tokens: pd.DataFrame, clusters: Int[np.ndarray, " prompt"], seed: int) -> pd.DataFrame:
    """Share of shifted tokens at each position of the response, against the writer judging itself."""
    counted = tokens[~tokens["special"]]
    rows = []
    for position, part in counted.groupby("position"):
        shifted, own = part["rank"].to_numpy() > 3, part["own_rank"].to_numpy() > 3
        units = clusters[part["prompt"].to_numpy()]
        rows.append(
            {
                "position": position,
                **beside_control(shifted, own, units, seed=seed, share=True),
                "kl": part["kl"].mean(),
                "n": len(part),
            }
        )
    return with_q(rows, keep_p=False)


def _until(row: list[int], ends: set[int]) -> list[int]:
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row


def _end_ids(model: AdaptedModel) -> set[int]:
    configured = getattr(model.inner.generation_config, "eos_token_id", None)
    return set() if configured is None else set(configured) if isinstance(configured, list) else {int(configured)}


def _special_ids(model: AdaptedModel) -> set[int]:
    named = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    return named | _end_ids(model)


def _padding(model: AdaptedModel) -> int:
    return 0 if model.tokenizer is None else pad_id(model.tokenizer)
