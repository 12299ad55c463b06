"""Whether two skills use the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.call_settings import call_settings
from probes.comparison import Overlap, overlap
from probes.grafting.result import GraftResult, flat_places
from probes.results import ProbeResult, Provenance
from workbench.errors import UserError
from workbench.figures.overlap import shared_bars
from workbench.models.digests import combined, digest
from workbench.typing import Int, Tensor

NO_PRICE = (
    "; a graft found as 'optimised' also holds entries that do nothing for its skill, so take grafts found as "
    "'adaptive', or give null grafts, before calling this shared"
)


@dataclass(frozen=True, kw_only=True)
class MaskOverlap(ProbeResult):
    """The weights that two grafts share, beside what two random regions of these sizes share.

    ``table`` has one row: ``score`` weights in both, ``control`` by chance, ``low`` to ``high`` the 95 % range of
    chance, ``q`` the chance of sharing as many or more (one test, so q is p), and :meth:`line`. The provenance names
    both grafts by their own (models, prompts, method, level and all else they were asked) and the hashes of their
    masks.
    """

    shared: int
    of_first: int
    of_second: int
    total: int
    """Eligible weights, of which chance chooses."""
    expected: float
    low: int
    high: int
    p: float
    no_price: bool = False
    """Whether a graft was found by the paper's rule, which never gives up an entry that does nothing."""

    title: ClassVar[str] = "Weights that two skills share"
    unit: ClassVar[str] = "weights in both regions"

    @property
    def overlap(self) -> Overlap:
        """The numbers alone."""
        return Overlap(*(getattr(self, name) for name in Overlap._fields))

    @property
    def jaccard(self) -> float:
        return self.overlap.jaccard

    @property
    def recall_of_first(self) -> float:
        """|A and B| / |A|: how much of the first is also in the second."""
        return self.overlap.recall_of_first

    @property
    def recall_of_second(self) -> float:
        return self.overlap.recall_of_second

    def line(self) -> dict[str, Any]:
        """The numbers by name, and both Jaccard indices."""
        shared = self.overlap
        return {**shared._asdict(), "jaccard": shared.jaccard, "expected jaccard": shared.expected_jaccard}

    def figure(self) -> go.Figure:
        """The shared weights as a bar, and the range of chance."""
        named = pd.DataFrame([{"first": "first", "second": "second", **self.line()}])
        return shared_bars(named, title=f"{self.title} (of {self.of_first} and {self.of_second})")

    def summary(self) -> str:
        """How many are shared, and how many by chance."""
        return (
            f"{self.shared} weights are in both regions ({self.recall_of_first:.1%} of the first, "
            f"{self.recall_of_second:.1%} of the second); by chance {self.expected:.3g} [{self.low}, {self.high}], "
            f"p {self.p:.2g}{NO_PRICE if self.no_price and 'null' not in self.control else ''}"
        )


def mask_overlap(first: GraftResult, second: GraftResult, *, null: Sequence[GraftResult] = ()) -> MaskOverlap:
    """|A and B| of two grafts of one model with its chance level; ``recall_of_first`` is the paper's |A and B| / |A|.

    Chance chooses as many entries at random from the eligible ones (of the larger region, where they differ). Grafts
    found as "optimised" share the entries that moved most, whatever the skill, because the paper's rule has no price
    per entry: two skills planted apart share several times what chance gives. So ask about overlap with grafts found
    as "adaptive", or give ``null``.

    Args:
        first: A graft.
        second: Another of the same models.
        null: Grafts found as ``second`` was, of skills that share nothing with the first (planted apart, or shuffled
            answers). Then ``expected``, ``low``, ``high`` and ``p`` are theirs: what they share with ``first``, each
            scaled to the size of ``second``; p is at best 1 / (n + 1).

    Raises:
        UserError: Grafts of ranks.
    """
    if "ranks" in (first.level, second.level, *(graft.level for graft in null)):
        raise UserError("Grafts of ranks choose no entries; find both with level='entries' to compare them.")
    ours, other = flat_places(first.mask), flat_places(second.mask)
    shared = _shared(ours, other)
    counts = [sum(len(places) for places in region.values()) for region in (ours, other)]
    shared_part = overlap(shared, counts[0], counts[1], max(first.eligible, second.eligible))
    if null:
        shared_part = shared_part._replace(**_against(shared, ours, counts[1], null))
    masks = {"first": _hash(ours), "second": _hash(other)}
    row = {"score": shared_part.shared, "control": shared_part.expected, "q": shared_part.p, **shared_part._asdict()}
    return MaskOverlap(
        table=pd.DataFrame([row]),
        control=f"what {len(null)} null grafts share with the first, scaled to the size of the second" if null
        else "as many weights chosen at random from the eligible ones (hypergeometric)",
        provenance=Provenance.of(
            "mask_overlap",
            {f"{side} {role}": model for side, graft in (("first", first), ("second", second))
             for role, model in graft.provenance.models.items()},
            settings={**call_settings(None, first=first, second=second, null=list(null)), "masks": masks},
        ),
        no_price="optimised" in (first.method, second.method),
        **shared_part._asdict(),
    )  # fmt: skip


def _shared(first: dict[str, Tensor], other: dict[str, Tensor]) -> int:
    return sum(len(np.intersect1d(first[name].numpy(), other[name].numpy())) for name in first.keys() & other.keys())


def _against(shared: int, region: dict[str, Tensor], size: int, null: Sequence[GraftResult]) -> dict[str, Any]:
    """Expected, range and p of what is shared, from null grafts."""
    scaled = []
    for graft in null:
        places = flat_places(graft.mask)
        count = sum(len(place) for place in places.values())
        scaled.append(_shared(region, places) * size / count if count else 0.0)
    low, high = np.quantile(scaled, [0.025, 0.975])
    p = (1 + sum(value >= shared for value in scaled)) / (len(scaled) + 1)
    return {"expected": float(np.mean(scaled)), "low": int(low), "high": int(np.ceil(high)), "p": float(p)}


def _hash(places: dict[str, Int[Tensor, " entry"]]) -> str:
    """Of the chosen entries, in whichever form the mask was stored."""
    return combined((name, digest(place)) for name, place in places.items())
