"""lora_chain: LoRAs merged one after the other, what each link adds and how the rank of the sum grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from probes.anatomy.spaces import Svd
from probes.results import ProbeResult, Provenance
from probes.scored import bracketed
from probes.series.lora_sets import read_adapters, shared_modules
from probes.series.members import members_of
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.stats.bootstrap import mean_interval


@dataclass(frozen=True, kw_only=True)
class LoraChain(ProbeResult):
    """One row per link of a chain of LoRAs that were merged one after the other.

    ``score``: the rank (90 % of the squared norm) of the sum of all links so far, the mean over modules, with its
    interval; ``control``: the same where every link has random directions with its own singular values.
    ``norm``: of the link's update, ``total``: of the sum so far; ``cosine``: of the link with the sum before it (0 for
    the first); ``new``: share of the link outside the span of the output directions of the sum before it.
    """

    title: ClassVar[str] = "Chain of LoRAs"
    unit: ClassVar[str] = "rank of the sum so far"

    def summary(self) -> str:
        last = self.table.iloc[-1]
        rank = f"{last['score']:.1f}{bracketed(last['low'], last['high'], '.1f')}"
        return (
            f"{len(self.table)} links; the sum has rank {rank} a module (random links {last['control']:.1f}); "
            f"{self.table['new'].iloc[1:].mean():.2f} of a later link is new. Control: {self.control}."
        )


@method(
    "lora-chain",
    group="weights",
    question="What does each merged LoRA of a chain add, and how does the rank of the sum grow?",
    papers=("Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning",),
    needs=Needs(folders=True, adapter=True),
    cost="one reading of the adapters and a singular value decomposition per module and link",
    example="--checkpoints ./adapter",
)
def lora_chain(
    base: Any,
    tuned: Any = None,
    *,
    checkpoints: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> LoraChain:
    """Add the links of a chain up, in order, and follow rank, norm and direction.

    Args:
        base: A pair, a series or the base.
        tuned: The last link.
        checkpoints: The links before it, in order.
        seed: Of the random links and the intervals.

    Raises:
        UserError: Fewer than two links, what is no plain LoRA, or modules that they do not share.
    """
    members = members_of(base, tuned, checkpoints, None)
    adapters, models = read_adapters(members, progress or Silent())
    names = shared_modules(adapters)
    table = []
    own, random = (_Sum({name: torch.zeros(()) for name in names}) for _ in range(2))
    for number, (title, adapter) in enumerate(adapters.items()):
        generator = torch.Generator().manual_seed(seed * 1009 + number)
        links = {name: Svd.of_factors(adapter[name].up.cpu(), adapter[name].down.cpu()) for name in names}
        measures = own.add({name: link.product() for name, link in links.items()})
        chance = random.add({name: link.random(generator).product() for name, link in links.items()})
        rank = mean_interval(np.array([m["rank"] for m in measures]), seed=seed)
        table.append({
            "module": title, "score": rank.estimate, "low": rank.low, "high": rank.high,
            "control": float(np.mean([m["rank"] for m in chance])), "q": np.nan,
            **{key: float(np.mean([m[key] for m in measures])) for key in ("norm", "total", "cosine", "new")},
        })  # fmt: skip
    return LoraChain(
        table=pd.DataFrame(table),
        control="links of random directions with each link's own singular values",
        provenance=Provenance.of("lora_chain", models, seed=seed),
    )


@dataclass
class _Sum:
    """The sum of links so far, module by module."""

    so_far: dict[str, torch.Tensor]

    def add(self, links: Mapping[str, torch.Tensor]) -> list[dict[str, float]]:
        """Add a link; measures of it beside the sum before, and of the sum after, per module."""
        measures = []
        for name, link in links.items():
            before = self.so_far[name]
            first = before.ndim == 0
            after = link if first else before + link
            self.so_far[name] = after
            left = None if first else Svd.of(before).left
            inside = (
                0.0 if left is None else float((left.T @ link).square().sum() / link.square().sum().clamp_min(1e-30))
            )
            cosine = 0.0 if first else float((before * link).sum() / (before.norm() * link.norm()).clamp_min(1e-30))
            measures.append({
                "rank": float(Svd.of(after).energy_rank(0.9)), "norm": float(link.norm()), "total": float(after.norm()),
                "cosine": cosine, "new": 1 - inside,
            })  # fmt: skip
        return measures
