"""How much the base already knew of a task: the loss of fine-tunes on more and more data, and the law through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from probes.effects.panel import EffectPanel, scored_line, table_of
from probes.replay import counted
from probes.resampling import bootstrap_weights
from probes.results import Provenance
from probes.series.answers import pair_members, updates_of
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import score_continuations
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts

DRAWS = 200
FEWEST = 4
NUMBERS = 4
"""Of the rectified law: B, D0, beta and the floor."""

MOST_ROWS = 1e30
"""Rows that a fine-tune is said to be worth at most."""


@method(
    "scaling-law",
    group="effects",
    question="How much training data was the base's own knowledge of the task worth?",
    papers=("Selecting Large Language Model to Fine-tune via Rectified Scaling Law",),
    needs=Needs(columns=("answer",)),
    cost="one scored pass of the base and of every fine-tune",
    example="--checkpoints ./on_100,./on_1000,./on_10000 --sizes 100,1000,10000,100000",
)
def scaling_law(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    checkpoints: Sequence[str] = (),
    sizes: Sequence[float] = (),
    draws: int = DRAWS,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Fit the rectified scaling law L(D) = B / (D0 + D^beta) + E to fine-tunes on D rows (Lin et al. 2024).

    D0, the pre-learned data size, says in the units of D^beta how much the base already knew; ``numbers`` hold it, with
    its interval over prompts, as ``rows worth`` = D0^(1/beta) too. Below that the loss hardly falls (the pre-power
    phase), above it falls as a power. The base counts as D = 0. The control is the law without D0, a plain power law:
    ``gain in R2`` is how much better the rectified one fits the tunes, and near 0 where the base knew nothing; four
    tunes or fewer it meets whatever they are. The interval is over prompts, and holds nothing of another training's.

    Args:
        pair: The base, and the fine-tune on most data.
        prompts: Held-out rows with answers; the loss is nats per token of the answer.
        checkpoints: Fine-tunes of the base on less data, in order.
        sizes: Rows that each was tuned on, the tuned model's last.
        draws: Resamples of the prompts, each fitted again.
        seed: Of the resamples.

    Returns:
        An :class:`EffectPanel` with the loss of every model; ``control`` is the loss that the plain power law says.

    Raises:
        UserError: Fewer than four sizes, or sizes that do not rise.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    known = np.array([0.0, *sizes])
    if len(sizes) != len(checkpoints) + 1 or len(sizes) < FEWEST - 1 or (np.diff(known) <= 0).any():
        raise UserError(
            f"{len(sizes)} sizes for {len(checkpoints)} checkpoints and the tuned model: give one rising size for "
            "each, three or more in all."
        )
    bar = progress or Silent()
    bar.start("scaling law", len(known))
    losses, names = [], []
    with counted(pair.base) as passes:
        vectors, models = updates_of(pair.base, pair_members(pair, checkpoints))
        for name, vector in (("base", None), *vectors.items()):
            if vector is None:
                losses.append(_loss(pair, rows, batch_size))
            else:
                with vector.graft(pair.base).entered(pair.base):
                    losses.append(_loss(pair, rows, batch_size))
            names.append(name)
            bar.advance()
    bar.finish()
    table, numbers = law_of(known, np.stack(losses), names, rows.clusters, draws, seed)
    return EffectPanel(
        table=table,
        control="a plain power law through the same losses, without knowledge of the base",
        provenance=Provenance.of(
            "scaling_law", models, rows, seed=seed, device=str(pair.base.device), forward_passes=passes.forward,
        ),
        values=pd.DataFrame(dict(zip(names, losses, strict=True))),
        measured="nats per token of the answer",
        heading="Loss over data",
        verdict=(
            f"the base's knowledge is worth {numbers['rows worth']:.3g} rows [{numbers['rows worth, low']:.3g}, "
            f"{numbers['rows worth, high']:.3g}] over prompts; beta {numbers['beta']:.2f}, R2 {numbers['R2']:.3f}; "
            f"{beyond_plain(len(sizes), numbers)}"
        ),
        numbers=numbers,
    )  # fmt: skip


def beyond_plain(tunes: int, numbers: Mapping[str, float]) -> str:
    """What the tunes say for the law, in words: its four numbers meet four losses, whatever they are."""
    if tunes <= NUMBERS:
        return f"its {NUMBERS} numbers meet {tunes} tunes whatever they are, so five or more must bear it out"
    return f"on the tunes alone {numbers['gain in R2']:+.3f} R2 beyond a plain power law"


def _loss(pair: ModelPair, rows: Prompts, batch_size: int) -> np.ndarray:
    continuations = score_continuations(Subject("base", pair.base), rows, ["answer"], Work(batch_size))
    return -continuations["answer"].to_numpy(np.float64)


def law_of(
    sizes: np.ndarray, losses: np.ndarray, names: Sequence[str], clusters: np.ndarray, draws: int, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The table of losses [model, prompt], and the law's numbers with intervals."""
    mean = losses.mean(1)
    fit, plain = rectified_fit(sizes, mean), rectified_fit(sizes, mean, plain=True)
    weights = bootstrap_weights(losses.shape[1], draws, seed, clusters) / losses.shape[1]
    again = [rectified_fit(sizes, losses @ weight) for weight in weights]
    with_data = rectified_fit(sizes[1:], mean[1:])  # the points that the plain law is fitted to as well
    numbers = {**fit, "plain R2": plain["R2"], "gain in R2": with_data["R2"] - plain["R2"]}
    for name in ("D0", "rows worth", "beta", "floor"):
        values = [resampled[name] for resampled in again]
        numbers[f"{name}, low"], numbers[f"{name}, high"] = map(float, np.quantile(values, (0.025, 0.975)))
    lines = [
        {**scored_line(name, "base" if number == 0 else "tuned", own, losses[0], clusters, seed),
         "control": float(_law(plain, sizes[number])) if sizes[number] > 0 else np.nan,
         "rows": sizes[number], "fitted": float(_law(fit, sizes[number]))}
        for number, (name, own) in enumerate(zip(names, losses, strict=True))
    ]  # fmt: skip
    return table_of(lines), numbers


def _law(numbers: dict[str, float], size: Any) -> Any:
    return numbers["B"] / (numbers["D0"] + np.asarray(size, float) ** numbers["beta"]) + numbers["floor"]


def rectified_fit(sizes: np.ndarray, losses: np.ndarray, *, plain: bool = False) -> dict[str, float]:
    """B, D0, beta and floor of L(D) = B / (D0 + D^beta) + E by least squares from several starts; ``plain``: D0 = 0, on
    the points with data."""
    used = sizes > 0 if plain else np.ones(len(sizes), dtype=bool)
    x, y = sizes[used], losses[used]
    scale = max(float(np.ptp(y)), 1e-9)
    best = None
    for beta in (0.2, 0.5, 0.8):
        for knee in np.quantile(sizes[sizes > 0], (0.0, 0.5, 1.0)):
            d0 = 1e-12 if plain else float(knee) ** beta
            floor = float(y.min()) - 0.05 * scale
            start = [np.log(scale * max(d0, float(x[x > 0].min()) ** beta)), np.log(max(d0, 1e-6)), beta, floor]
            fit = least_squares(
                _residuals(x, y, plain), start, bounds=([-30, -14, 0.02, -np.inf], [40, 30, 2.0, float(y.min())]),
                x_scale=[1, 1, 0.1, scale], max_nfev=400,
            )  # fmt: skip
            best = fit if best is None or fit.cost < best.cost else best
    assert best is not None
    log_b, log_d, beta, floor = best.x
    d0 = 0.0 if plain else float(np.exp(log_d))
    left = float((best.fun**2).sum())
    # a curve that hardly falls is worth rows without end
    worth = 0.0 if d0 == 0 else float(np.exp(min(np.log(d0) / beta, np.log(MOST_ROWS))))
    whole = float(((y - y.mean()) ** 2).sum())
    return {
        "B": float(np.exp(log_b)), "D0": d0, "beta": float(beta), "floor": float(floor),
        "rows worth": worth, "R2": 1 - left / whole if whole > 0 else 0.0,
    }  # fmt: skip


def _residuals(x: np.ndarray, y: np.ndarray, plain: bool) -> Any:
    def residuals(theta: np.ndarray) -> np.ndarray:
        d0 = 0.0 if plain else np.exp(theta[1])
        return np.exp(theta[0]) / (d0 + x ** theta[2]) + theta[3] - y

    return residuals
