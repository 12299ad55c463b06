"""rank_map: which rank an update has in every module of every layer, 0 where nothing was adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from probes.anatomy.spaces import Svd
from probes.results import ProbeResult, Provenance
from probes.series.members import difference
from probes.weights.naming import place_of
from probes.weights.sources import Opened, open_weights
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked


@dataclass(frozen=True, kw_only=True)
class RankMap(ProbeResult):
    """One row per matrix inside the layers, changed or not.

    ``score``: the rank that holds 90 % of the squared norm of its update, 0 where nothing was adapted; ``low``,
    ``high`` equal it; ``control``: what a rank that is used evenly would show, the same share of the nominal rank.
    ``rank``: nominal, from the shapes of the factors (of another update: its numerical rank). ``parameters``: of the
    factors, and ``share`` of all of them; ``norm``: ||dW||. ``layers``: per layer, adapted modules, their ranks added
    up and the share of the parameters.
    """

    layers: pd.DataFrame

    title: ClassVar[str] = "Ranks of the update"
    unit: ClassVar[str] = "rank with 90 % of the squared norm"

    def summary(self) -> str:
        used = self.table[self.table["rank"] > 0]
        bare = [str(layer) for layer in self.layers[self.layers["modules"] == 0]["layer"]]
        untouched = f"; no module in layers {', '.join(bare)}" if bare else ""
        return (
            f"{len(used)} of {len(self.table)} matrices adapted, nominal ranks {used['rank'].min():.0f} to "
            f"{used['rank'].max():.0f}, used {used['score'].mean():.1f} of {used['rank'].mean():.1f} (evenly used "
            f"{used['control'].mean():.1f}){untouched}. Control: {self.control}."
        )


@method(
    "rank-map",
    group="weights",
    question="Where was a module adapted at all, with which rank, and how much of the rank is used?",
    papers=(
        "TriAdaptLoRA: Brain-Inspired Triangular Adaptive Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
        "AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning",
        "Neural Fine-Tuning Search for Few-Shot Learning",
        "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
        "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models",
    ),
    needs=Needs(folders=True),
    cost="one reading of both models, and a decomposition of every changed matrix",
)
def rank_map(base: Any, tuned: Any = None, *, share: float = 0.9, progress: Progress | None = None) -> RankMap:
    """Read ranks from the numbers: configurations of EVA, AdaLoRA or a search say another rank than the modules have.

    A searched layout, which adapts some layers, tunes some whole and freezes the rest (AutoPEFT; neural fine-tuning
    search, from vision), is told by where the rank is 0, low, or the matrix's own.

    An adapter that rewrote the base's weights (KaSA, PiSSA, CorDA) is compared with the true base.

    Args:
        base: A pair, or the base.
        tuned: The tuned model or adapter, where ``base`` is no pair.
        share: Share of the squared norm that the used rank holds.

    Raises:
        UserError: Nothing differs inside the layers.
    """
    opened = open_weights(base, tuned)
    watch = progress or Silent()
    names = [name for name in opened.base if place_of(name).layer is not None and not name.endswith(".bias")]
    watch.start("ranks", len(names))
    rows = []
    for name in tracked(names, watch):
        row = _matrix(opened, name, share)
        if row is not None:
            rows.append(row)
    watch.finish()
    table = pd.DataFrame(rows)
    if table.empty or not (table["rank"] > 0).any():
        raise UserError("The two models do not differ in any matrix inside the layers: no module was adapted.")
    table["share"] = table["parameters"] / table["parameters"].sum()
    layers = table.groupby("layer").agg(
        modules=("rank", lambda ranks: int((ranks > 0).sum())), rank=("rank", "sum"), share=("share", "sum")
    )
    return RankMap(
        table=table,
        control="a rank that is used evenly: the same share of the nominal rank",
        provenance=Provenance.of("rank_map", opened.identities()),
        layers=layers.reset_index(),
    )


@torch.no_grad()
def _matrix(opened: Opened, name: str, share: float) -> dict[str, Any] | None:
    place = place_of(name)
    where = {"layer": place.layer, "module": place.module, "q": np.nan}
    factors = opened.factors.get(name)
    nothing = dict.fromkeys(("score", "low", "high", "control", "rank", "parameters", "norm"), 0.0)
    if factors is not None:
        svd = Svd.of_factors(factors.up.cpu(), factors.down.cpu())
        rank, parameters = float(factors.down.shape[0]), float(factors.up.numel() + factors.down.numel())
    else:
        if name not in opened.tuned or opened.tuned[name] is opened.base[name]:
            return {**where, **nothing} if _is_matrix(opened, name) else None
        change = difference(opened, name).float().cpu()
        if change.ndim != 2:
            return None
        if not bool((change != 0).any()):
            return {**where, **nothing}
        svd = Svd.of(change)
        rank, parameters = float(svd.rank), float(svd.rank * sum(change.shape))
    used = float(svd.energy_rank(share))
    even = float(np.ceil(share * rank - 1e-9))
    norm = float(svd.values.square().sum().sqrt())
    return {
        **where, "score": used, "low": used, "high": used, "control": even, "rank": rank, "parameters": parameters,
        "norm": norm,
    }  # fmt: skip


def _is_matrix(opened: Opened, name: str) -> bool:
    return opened.base[name]().ndim == 2
