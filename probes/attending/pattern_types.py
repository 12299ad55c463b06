"""pattern_types: how each head's attention would be computed sparsely, and how much of it, before and after tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from probes.attending.confidence import read_patterns
from probes.attending.head_changes import attention_layers, head_changes
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

TYPES = ("vertical-slash", "query-aware")


@dataclass(frozen=True, kw_only=True)
class PatternTypes(ProbeResult):
    """One row per head.

    ``score``: the change, tuned - base, of its coverage index: the share of the pairs of the last queries and keys that
    a sparse pattern of its type must compute to hold ``coverage`` of their attention, with its interval over prompts;
    ``control``: the mean change of its layer, ``q`` of a change; ``base``, ``tuned``: the index itself; ``type_base``,
    ``type_tuned``: query-aware where most prompts' attention by blocks is foretold by pooled queries and keys (root of
    the Jensen-Shannon divergence below ``threshold``), else vertical-slash; ``divergence_base``, ``divergence_tuned``;
    ``switched``: share of prompts on which the type is another one after tuning.
    """

    threshold: float
    coverage: float
    resampled: str = "prompts"

    title: ClassVar[str] = "Coverage of sparse attention"
    unit: ClassVar[str] = "change of the share that must be computed"

    def summary(self) -> str:
        counts = [int((self.table[f"type_{role}"] == "query-aware").sum()) for role in ("base", "tuned")]
        row = self.table.iloc[int(self.table["score"].abs().to_numpy().argmax())]
        moved = int((self.table["q"] < 0.05).sum())
        return (
            f"{counts[0]} of {len(self.table)} heads query-aware in the base, {counts[1]} after tuning; {moved} "
            f"changed their coverage (q < 0.05), most L{row['layer']}H{row['head']} {row['base']:.2f} to "
            f"{row['tuned']:.2f} ({row['score']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]); {self.coverage:.0%} of "
            f"attention held, over {self.resampled}. Control: {self.control}."
        )


@method(
    "pattern-types",
    group="attention",
    question="Which heads look at fixed places and which where the query says, and did long-context tuning change it?",
    papers=("FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference",),
    cost="one pass of each model per prompt, with attention patterns",
    example="--block 2",
)
def pattern_types(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layers: Any = None,
    block: int = 16,
    threshold: Annotated[float, Within(0, 1)] = 0.1,
    coverage: Annotated[float, Within(0.01, 1)] = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
) -> PatternTypes:
    """Type every head by the last block of queries, and count what its sparse pattern must compute.

    As in FlexPrefill (Lai et al. 2025): attention summed by blocks of keys is compared with the softmax of pooled
    queries times pooled keys, here from the logarithm of the pattern, which is the same up to the last block. A
    query-aware head needs the fewest blocks that hold ``coverage``; another one the fewest columns and the fewest
    diagonals.

    Args:
        pair: Both models, of one shape.
        prompts: What both read, longer than two blocks; long contexts show most.
        layers: Which layers; all by default.
        block: Tokens of a block.
        threshold: Root of the divergence up to which pooled queries and keys foretell attention (the paper's tau).
        coverage: Share of attention to hold (the paper's gamma).
        seed: Of resampling and tests.

    Returns:
        A :class:`PatternTypes`. A base with itself changed nowhere.

    Raises:
        UserError: The models have other heads, no layer has any, or a prompt is shorter than two blocks.
    """
    check_pair(pair, prompts)
    places = attention_layers(pair, layers)
    rows = Prompts.of(prompts)
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    if not places:
        raise UserError("There is no attention to compare: give layers with heads.")
    if short := [number for number, row in enumerate(ids) if len(row) < 2 * block]:
        raise UserError(
            f"Prompt {short[0]} has {len(ids[short[0]])} tokens, fewer than two blocks of {block}: give longer prompts "
            "or a smaller block."
        )
    watch = progress or Silent()
    watch.start("pattern types", len(ids))
    of_role: dict[str, list[_Typed]] = {"base": [], "tuned": []}
    with counted(pair.base, pair.tuned) as passes:
        for row in tracked(ids, watch):
            for role, model in pair.models.items():
                of_role[role].append(typed(read_patterns(model, row, places), block, threshold, coverage))
    watch.finish()
    return PatternTypes(
        table=_table(of_role, places, rows.clusters, seed),
        control="the mean change over the heads of the layer",
        provenance=Provenance.of("pattern_types", pair, rows, seed=seed, forward_passes=passes.forward),
        threshold=threshold,
        coverage=coverage,
        resampled=units_of(rows.clusters),
    )  # fmt: skip


@dataclass(frozen=True)
class _Typed:
    """One prompt in one model: root of the divergence, whether query-aware, and the coverage index."""

    divergence: Float[np.ndarray, "layer head"]
    aware: np.ndarray
    index: Float[np.ndarray, "layer head"]


def typed(pattern: Float[Tensor, "layer head query key"], block: int, threshold: float, coverage: float) -> _Typed:
    """Types and coverage indices of the heads of some layers, from the last ``block`` queries."""
    last = pattern[..., -block:, :].double()
    queries, keys = last.shape[-2:]
    seen = torch.arange(keys)[None] <= torch.arange(keys - queries, keys)[:, None]
    number = torch.arange(keys) // block
    whole = torch.nn.functional.one_hot(number).double()
    true = last.mean(-2) @ whole
    logs = torch.where(seen, last.clamp_min(1e-30).log(), 0.0)
    pooled = (logs.sum(-2) @ whole) / (seen.double().sum(0) @ whole)
    foretold = pooled.softmax(-1)
    divergence = jensen_shannon(true, foretold).sqrt().numpy()
    aware = divergence < threshold
    blocks = (_fewest(true, coverage).double() @ whole.T) > 0
    columns = _fewest(last.mean(-2), coverage)
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
    slashes = last.new_zeros(*last.shape[:-2], keys).index_add_(
        -1, distance.clamp_min(0).flatten(), (last * seen).flatten(-2)
    )
    diagonals = _fewest(slashes / queries, coverage)[..., distance.clamp_min(0)]
    computed = np.where(
        aware, _share(blocks[..., None, :].expand_as(last), seen), _share(columns[..., None, :] | diagonals, seen)
    )
    return _Typed(divergence, aware, computed)


def jensen_shannon(p: Float[Tensor, "*head block"], q: Float[Tensor, "*head block"]) -> Float[Tensor, "*head"]:
    """In nats; 0 for the same distribution, log 2 for two that share nothing."""
    middle = (p + q) / 2
    divergences = [(torch.special.xlogy(side, side) - torch.special.xlogy(side, middle)).sum(-1) for side in (p, q)]
    return ((divergences[0] + divergences[1]) / 2).clamp_min(0)


def _fewest(weights: Float[Tensor, "*head item"], coverage: float) -> Tensor:
    """True at the fewest items whose weights add up to ``coverage`` of all."""
    ordered = weights.sort(-1, descending=True)
    before = ordered.values.cumsum(-1) - ordered.values
    inside = before < coverage * weights.sum(-1, keepdim=True)
    return torch.zeros_like(inside).scatter_(-1, ordered.indices, inside)


def _share(computed: Tensor, seen: Tensor) -> Float[np.ndarray, "layer head"]:
    share: np.ndarray = ((computed & seen).double().sum((-1, -2)) / seen.sum()).numpy()
    return share


def _table(of_role: dict[str, list[_Typed]], layers: Sequence[int], clusters: np.ndarray, seed: int) -> pd.DataFrame:
    index = {role: np.stack([prompt.index for prompt in own]) for role, own in of_role.items()}
    aware = {role: np.stack([prompt.aware for prompt in own]) for role, own in of_role.items()}
    apart = {role: np.stack([prompt.divergence for prompt in own]).mean(0) for role, own in of_role.items()}
    changes = head_changes(index["tuned"] - index["base"], layers, clusters, seed)
    query_aware = {role: (own.mean(0) > 0.5).reshape(-1) for role, own in aware.items()}
    return with_q(changes).assign(
        **{role: own.mean(0).reshape(-1) for role, own in index.items()},
        **{f"type_{role}": [TYPES[int(number)] for number in own] for role, own in query_aware.items()},
        **{f"divergence_{role}": own.reshape(-1) for role, own in apart.items()},
        switched=(aware["base"] != aware["tuned"]).mean(0).reshape(-1), n=len(index["base"]),
    )  # fmt: skip
