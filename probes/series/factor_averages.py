"""Means of LoRA factors against means of their products: what federated averaging gets wrong (Sun et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from probes.results import ProbeResult, Provenance
from probes.series.lora_sets import Adapters, read_adapters, shared_modules
from probes.series.members import Members, members_of
from probes.weights.naming import place_of
from probes.weights.sources import Factors
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent


@dataclass(frozen=True, kw_only=True)
class FactorAverages(ProbeResult):
    """One row per module that all adapters change.

    ``score``: ||mean(B) mean(A) - mean(B A)|| / ||mean(B A)||, the error of averaging factors (federated averaging);
    ``low``, ``high`` equal it (the weights are known exactly); ``control``: the same with the adapters' A replaced by
    the first one's, which is what freezing A gives: 0 up to rounding. ``a_equal``: whether all A are equal bit for bit;
    ``a_initial``: whether they are that of ``initial`` (NaN without).
    """

    title: ClassVar[str] = "Error of averaging LoRA factors"
    unit: ClassVar[str] = "relative error of the mean update"

    def summary(self) -> str:
        table = self.table
        return (
            f"{len(table)} modules; averaging A and B apart misses the mean update by {table['score'].mean():.2g} "
            f"of its norm (at most {table['score'].max():.2g}), with one A by {table['control'].mean():.1g}; "
            f"A is the same in all adapters at {table['a_equal'].mean():.0%} of the modules. Control: {self.control}."
        )


@method(
    "factor-averages",
    group="weights",
    question="May these LoRAs be averaged factor by factor, and was A frozen?",
    papers=("Improving LoRA in Privacy-preserving Federated Learning",),
    needs=Needs(folders=True, adapter=True),
    cost="one reading of the adapters",
    example="--checkpoints ./adapter",
)
def factor_averages(
    base: Any,
    tuned: Any = None,
    *,
    checkpoints: Sequence[str] = (),
    initial: str | None = None,
    progress: Progress | None = None,
) -> FactorAverages:
    """Compare the product of mean factors with the mean of products, module by module, in float64.

    Args:
        base: A pair, a series or the base.
        tuned: One adapter.
        checkpoints: The other adapters (clients, seeds).
        initial: The adapter as it was before training.

    Raises:
        UserError: Fewer than two adapters, what is no plain LoRA, modules that they do not share, or other ranks.
    """
    members = members_of(base, tuned, checkpoints, None)
    adapters, models = read_adapters(members, progress or Silent())
    start = None if initial is None else next(iter(read_adapters(Members(members.base, [initial], ["initial"], [0.0]),
                                                                  Silent())[0].values()))  # fmt: skip
    rows = []
    names = shared_modules(adapters)
    _check_ranks(adapters, names)
    for name in names:
        held = [adapter[name] for adapter in adapters.values()]
        place = place_of(name)
        error, frozen = averaging_error(held), averaging_error([Factors(f.up, held[0].down, 1.0) for f in held])
        equal = all(torch.equal(f.down, held[0].down) for f in held)
        begun = np.nan if start is None or name not in start else float(
            all(torch.equal(f.down, start[name].down) for f in held)
        )  # fmt: skip
        rows.append({
            "layer": place.layer, "module": place.module, "score": error, "low": error, "high": error,
            "control": frozen, "q": np.nan, "a_equal": float(equal), "a_initial": begun, "rank": held[0].down.shape[0],
        })  # fmt: skip
    return FactorAverages(
        table=pd.DataFrame(rows),
        control="the same adapters with the first one's A in all of them (what freezing A gives)",
        provenance=Provenance.of("factor_averages", models),
    )


def _check_ranks(adapters: Adapters, names: Sequence[str]) -> None:
    """Raises :class:`UserError` for factors that cannot be averaged entry by entry."""
    first, *others = adapters
    for other in others:
        for name in names:
            ranks = [adapters[title][name].down.shape[0] for title in (first, other)]
            if ranks[0] != ranks[1]:
                raise UserError(
                    f"{name} has rank {ranks[0]} in {first} and {ranks[1]} in {other}, so their factors have no mean: "
                    "give adapters of one rank, or average their products (interventions.uniform_soup)."
                )


def averaging_error(factors: Sequence[Factors]) -> float:
    """||mean(up) mean(down) - mean(up down)|| / ||mean(up down)||, in float64, of factors of one rank."""
    ups, downs = [f.up.double() for f in factors], [f.down.double() for f in factors]
    products = sum((up @ down for up, down in zip(ups, downs, strict=True)), torch.zeros(())) / len(factors)
    apart = (sum(ups, torch.zeros(())) / len(ups)) @ (sum(downs, torch.zeros(())) / len(downs))
    size = float(products.norm())
    return float((apart - products).norm()) / size if size else 0.0
