"""random_bases: the update that a NOLA adapter's seeds and coefficients stand for, and how much of it is the seed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from interventions.exchange.random_bases import lora_from_random_bases, stored_numbers
from probes.anatomy.foreign_adapter import ForeignAdapter, foreign_adapter
from probes.results import ProbeResult, Provenance
from probes.series.members import factored_norm2
from probes.weights.naming import key_of, place_of
from probes.weights.sources import Factors, Opened, open_weights
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.stats.bootstrap import mean_interval


@dataclass(frozen=True, kw_only=True)
class RandomBases(ProbeResult):
    """One row per module that the adapter changes.

    ``score``: ||dW|| / ||W|| of the rebuilt update; ``low``, ``high`` equal it; ``control``: the mean of the same when
    the coefficients mix other random matrices. ``cosine``, ``cosine_low``, ``cosine_high``: of the update with those,
    over the draws: 0 where the update is what the seed makes of the coefficients, 1 where the starting matrices are all
    of it. ``rank``: of the factors; ``numbers``: stored per module (coefficients), ``lora_numbers``: what a LoRA of
    that rank would store.
    """

    drawn_on: str

    title: ClassVar[str] = "Updates rebuilt from random matrices"
    unit: ClassVar[str] = "‖ΔW‖ / ‖W‖"

    def summary(self) -> str:
        table = self.table
        best = self.frame().iloc[0]
        return (
            f"{len(table)} modules rebuilt from {table['numbers'].sum():.0f} numbers (a LoRA of this rank has "
            f"{table['lora_numbers'].sum():.0f}), matrices drawn on {self.drawn_on}; largest at L{best['layer']:.0f} "
            f"{best['module']}, {best['score']:.3g} of W (other seeds {best['control']:.3g}); cosine with other seeds "
            f"{table['cosine'].mean():.3f}. Control: {self.control}."
        )


@method(
    "random-bases",
    group="weights",
    question="Which update do a NOLA adapter's coefficients and seeds stand for?",
    papers=("NOLA: Networks as Linear Combination of Low Rank Random Basis",),
    needs=Needs(folders=True),
    cost="one reading of the base, and a draw of all random matrices per draw of the control",
)
def random_bases(
    base: Any,
    tuned: Any = None,
    *,
    drawn_on: str = "cpu",
    draws: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> RandomBases:
    """Rebuild dW from the seeds, exactly, and compare it with the same coefficients over other random matrices.

    ``interventions.exchange.random_bases.lora_from_random_bases`` writes the update as a plain LoRA that every other
    method reads. The matrices are those of PyTorch's generator on ``drawn_on``: a GPU draws others from the same seed,
    and an adapter rebuilt with the wrong one is as far from the trained one as the control here.

    Args:
        base: The base: a model, a folder or a hub id.
        tuned: The folder of a NOLA adapter, as its fork of PEFT saves it (weights as safetensors).
        drawn_on: Where training drew its random matrices: cpu or cuda.
        draws: Other draws of the matrices; 2 or more.
        seed: Of the other draws.

    Raises:
        UserError: No NOLA adapter, or weights stored as pickle.
        NotSupported: A GPU's draws without a GPU.
    """
    watch = progress or Silent()
    watch.start("random bases", draws + 1)
    folder = tuned.folder if isinstance(tuned, ForeignAdapter) else str(tuned)
    with tempfile.TemporaryDirectory() as held:
        own = _opened(base, folder, Path(held) / "own", drawn_on, 0, watch)
        others = [
            _opened(base, folder, Path(held) / f"other{draw}", drawn_on, 1 + seed * 1009 + draw, watch).factors
            for draw in range(draws)
        ]
        table = pd.DataFrame([_row(own, name, [factors[name] for factors in others], seed) for name in own.factors])
        below = own.identities()["base"]
    watch.finish()
    numbers = {f"{key_of(module)}.weight": count for module, count in stored_numbers(folder).items()}
    return RandomBases(
        table=table.assign(numbers=table.pop("name").map(numbers)),
        control=f"the same coefficients over other random matrices ({draws} draws)",
        provenance=Provenance.of("random_bases", {"base": below, "tuned": foreign_adapter(below, tuned)}, seed=seed),
        drawn_on=drawn_on,
    )  # fmt: skip


def _opened(base: Any, adapter: Any, folder: Path, device: str, reseed: int, watch: Progress) -> Opened:
    opened = open_weights(base, str(lora_from_random_bases(str(adapter), folder, device=device, reseed=reseed)))
    watch.advance()
    return opened


def _row(own: Opened, name: str, others: list[Factors], seed: int) -> dict[str, Any]:
    place, factors = place_of(name), own.factors[name]
    size = float(own.base[name]().detach().float().norm())
    norm = factored_norm2(factors) ** 0.5
    norms = [factored_norm2(other) ** 0.5 for other in others]
    cosines = np.array([_cosine(factors, other) for other in others])
    inside = mean_interval(cosines, seed=seed) if len(cosines) > 1 else None
    rank = factors.down.shape[0]
    return {
        "name": name, "layer": place.layer, "module": place.module,
        "score": norm / size, "low": norm / size, "high": norm / size,
        "control": float(np.mean(norms)) / size if norms else np.nan, "q": np.nan,
        "cosine": float(cosines.mean()) if len(cosines) else np.nan,
        "cosine_low": np.nan if inside is None else inside.low,
        "cosine_high": np.nan if inside is None else inside.high,
        "rank": rank, "lora_numbers": factors.up.numel() + factors.down.numel(),
    }  # fmt: skip


def _cosine(first: Factors, other: Factors) -> float:
    """Of two products, from Gram matrices of their factors."""
    inner = float(((first.up.double().T @ other.up.double()) * (first.down.double() @ other.down.double().T)).sum())
    size = (factored_norm2(first) * factored_norm2(other)) ** 0.5
    return inner / size if size else 0.0
