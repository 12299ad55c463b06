"""A graft: the region, what it does at several sizes, and where its weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy.stats import binomtest, hypergeom

from interventions.weightspace.graft import Graft
from probes.grafting.regions import Level, Region
from probes.grafting.units import Mask, entries_in
from probes.results import ProbeResult
from probes.weights.naming import place_of
from workbench.errors import NotSupported
from workbench.figures.graft import sparsity_curve
from workbench.stats import q_values
from workbench.typing import Tensor

_DENSE_ABOVE = 1 / 32


@dataclass(frozen=True, kw_only=True)
class GraftResult(ProbeResult):
    """Where a skill sits in weight space.

    ``mask`` maps a parameter to a bool tensor of its shape, or to flat int64 coordinates where few entries are
    chosen (for ranks: to a bool per rank); tensors without a chosen entry are absent. ``curve`` has a row per
    size: sparsity, entries, accuracy (low, high), ece, agreement with the tuned model, ood_accuracy, and the
    controls movement, random (random_low, random_high). ``models`` compares base, tuned, graft, complement and
    controls at the region's own size. ``table`` scores every tensor: the share of its eligible entries that were
    chosen, against the share everywhere (``control``); q from the hypergeometric tail.
    """

    mask: dict[str, Tensor]
    curve: pd.DataFrame
    models: pd.DataFrame
    method: str
    level: str
    entries: int
    eligible: int
    dropped: int
    history: list[list[float]]

    title: ClassVar[str] = "Skill in weight space"
    unit: ClassVar[str] = "share of the tensor's entries in the graft"

    @property
    def sparsity(self) -> float:
        """Share of the eligible entries in the region."""
        return self.entries / self.eligible

    def of(self, model: str, measure: str = "accuracy") -> float:
        """A number of ``models``: ``of("complement")``, ``of("graft", "ece")``."""
        return float(self.models.set_index("model").loc[model, measure])  # type: ignore[arg-type]

    @property
    def recovered(self) -> float:
        """Share of the tuned model's gain in accuracy over the base that the graft brings."""
        return (self.of("graft") - self.of("base")) / (self.of("tuned") - self.of("base"))

    def intervention(self, pair: Any) -> Graft:
        """The region as an intervention on ``pair.base``. Ranks are turned with ``AdapterScale`` instead."""
        if self.level == "ranks":
            raise NotSupported("A graft of ranks is no choice of entries: use interventions.AdapterScale(ranks=...).")
        return Graft.from_pair(pair, self.mask)

    def figure(self, metric: str = "accuracy") -> go.Figure:
        """``metric`` of grafts against their size, with the controls."""
        title = f"{self.title}: {self.method}, by {self.level} (n = {self.of('graft', 'n'):.0f} held-out prompts)"
        return sparsity_curve(
            self.curve, base=self.of("base", metric), tuned=self.of("tuned", metric), share=self.sparsity,
            metric=metric, title=title,
        )  # fmt: skip

    def summary(self) -> str:
        """What the region is and how much it carries."""
        dropped = f" {self.dropped} prompts dropped (answers begin alike)." if self.dropped else ""
        return (
            f"{self.entries} of {self.eligible} weights ({self.sparsity:.2%}, {self.method}, by {self.level}) take "
            f"accuracy from {self.of('base'):.3f} to {self.of('graft'):.3f} (tuned: {self.of('tuned'):.3f}); the "
            f"rest without them: {self.of('complement'):.3f}.{dropped} Control: {self.control}."
        )


def stored_mask(region: Region, mask: Mask, level: Level) -> dict[str, Tensor]:
    """The mask in the form of :class:`GraftResult`."""
    stored: dict[str, Tensor] = {}
    for name, entries in mask.items():
        if not bool(entries.any()):
            continue
        whole = entries if level == "ranks" else entries.expand(region.parts[name].base.shape)
        sparse = level != "ranks" and float(whole.float().mean()) < _DENSE_ABOVE
        stored[name] = (whole.reshape(-1).nonzero()[:, 0] if sparse else whole.contiguous()).cpu()
    return stored


def density_table(region: Region, mask: Mask) -> pd.DataFrame:
    """One row per tensor: chosen share with its Clopper-Pearson interval, against the share everywhere."""
    total, inside = region.n_entries, entries_in(region, mask)
    rows = []
    for name, part in region.parts.items():
        size = part.entries_per_unit * part.unit_shape.numel()
        count = int(mask[name].sum()) * part.entries_per_unit
        held = binomtest(count, size).proportion_ci(method="exact")
        place = place_of(name)
        p = float(hypergeom.sf(count - 1, max(total, size), min(inside, total), size))
        where = {"layer": place.layer, "module": place.module, "name": name}
        rows.append({**where, "score": count / size, "low": held.low, "high": held.high, "entries": count, "p": p})
    table = pd.DataFrame(rows).assign(control=inside / total)
    layers = pd.array([None if layer is None else int(layer) for layer in table["layer"].tolist()], dtype="Int64")
    return table.assign(layer=layers, q=q_values(np.asarray(table["p"]))).drop(columns="p")


def flat_places(mask: Mask) -> dict[str, Tensor]:
    """Every stored mask as flat coordinates."""
    return {
        name: entries if entries.dtype == torch.int64 else entries.reshape(-1).nonzero()[:, 0]
        for name, entries in mask.items()
    }
