"""adapter_reconstruction: an adapter that was generated or put together, beside the one that training gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from probes.anatomy.spaces import Svd
from probes.results import ProbeResult, Provenance
from probes.series.lora_sets import read_adapters, shared_modules
from probes.series.members import members_of
from probes.weights.naming import place_of
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent


@dataclass(frozen=True, kw_only=True)
class Reconstruction(ProbeResult):
    """One row per module: how well an adapter that was made (generated, interpolated) gives back a trained one.

    ``score``: ||made - trained|| / ||trained||, ``control``: of the best multiple of random directions with the made
    adapter's singular values (about 1: nothing); ``cosine`` of the two; ``scale``: the factor on the made adapter that
    fits best, ``fitted``: the error with it.
    """

    title: ClassVar[str] = "Reconstruction of an adapter"
    unit: ClassVar[str] = "relative error of the update"

    def summary(self) -> str:
        table = self.table
        return (
            f"{len(table)} modules; relative error {table['score'].mean():.2f} (fitted scale "
            f"{table['fitted'].mean():.2f}, random directions {table['control'].mean():.2f}), cosine "
            f"{table['cosine'].mean():.2f}. Control: {self.control}."
        )


@method(
    "adapter-reconstruction",
    group="weights",
    question="How near is a generated adapter to the trained one, module by module?",
    papers=("In-Context Meta LoRA Generation",),
    needs=Needs(folders=True, adapter=True),
    cost="one reading of both adapters",
    example="--trained ./adapter",
)
def adapter_reconstruction(
    base: Any,
    tuned: Any = None,
    *,
    trained: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Compare the update of ``tuned`` with that of ``trained``; any split of scale between A and B is the same.

    Args:
        base: A pair, or the base.
        tuned: The adapter that was generated or put together.
        trained: The adapter that training gives, the reference.
        seed: Of the random directions.

    Raises:
        UserError: No reference, what is no plain LoRA, or modules that the two do not share.
    """
    if not trained:
        raise UserError("There is nothing to compare with: name the trained adapter with trained.")
    members = members_of(base, tuned, [trained], None)
    adapters, models = read_adapters(members, progress or Silent())
    reference, made = adapters.values()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name in shared_modules(adapters):
        place = place_of(name)
        own = Svd.of_factors(made[name].up.cpu(), made[name].down.cpu())
        target = (reference[name].up @ reference[name].down).cpu().float()
        fit, chance = _fit(own.product(), target), _fit(own.random(generator).product(), target)
        rows.append({
            "layer": place.layer, "module": place.module, "score": fit["error"], "low": fit["error"],
            "high": fit["error"], "control": chance["fitted"], "q": np.nan, **{k: fit[k] for k in
            ("cosine", "scale", "fitted")},
        })  # fmt: skip
    return Reconstruction(
        table=pd.DataFrame(rows),
        control="the best multiple of random directions with the made adapter's singular values",
        provenance=Provenance.of("adapter_reconstruction", models, seed=seed),
    )


def _fit(made: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    size, own = float(target.norm()), float(made.norm())
    product = float((made * target).sum())
    scale = product / own**2 if own else 0.0
    return {
        "error": float((made - target).norm()) / max(size, 1e-30),
        "cosine": product / max(own * size, 1e-30),
        "scale": scale,
        "fitted": float((scale * made - target).norm()) / max(size, 1e-30),
    }
