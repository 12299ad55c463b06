"""How far each layer moved over a series of fine-tunes, and whether that goes with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import rankdata

from probes.results import ProbeResult, Provenance
from probes.series.members import Members, members_of, moved
from workbench.figures.series import lines_by_layer, points_on_map
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.stats.fdr import q_values
from workbench.typing import Float

CONTROL = "the members' scores in random order (mean of |rho|); base against itself moves by exactly 0"


@dataclass(frozen=True, kw_only=True)
class SeriesProfile(ProbeResult):
    """Relative change of every layer over the members of a series.

    ``table``: per layer, ``score`` is Spearman's rho over members between the layer's relative change and the
    members' scores, with its interval over members, the control and q; ``change`` is the mean relative change, and
    ``layer_share`` the layer's part of all squared change. Without scores rho is NaN and the rows are read by
    ``change``. ``profile``: one row per member and layer. ``members``: name, score, total relative change, and its
    place on the map (``x``, ``y``): the two directions along which members' changes by layer lie furthest from the
    base, which is at 0, 0. ``map_share``: the part of the squared changes that those two show.
    """

    profile: pd.DataFrame
    members: pd.DataFrame
    map_share: float = float("nan")
    notes: tuple[str, ...] = ()

    title: ClassVar[str] = "Change by layer over a series"
    unit: ClassVar[str] = "rank correlation of the layer's change with the scores"

    def figure(self) -> go.Figure:
        """Relative change by layer, a line per member."""
        return lines_by_layer(self.profile, title=self.title, unit="relative change ‖ΔW‖ / ‖W‖")

    def map(self) -> go.Figure:
        """The members and their base in two dimensions, coloured by score."""
        return points_on_map(self.members, title=f"{self.title}: map, {self.map_share:.0%} of the squared change")

    def summary(self) -> str:
        most = self.table.sort_values("change").iloc[-1]
        text = f"{len(self.members)} members; layer {int(most['layer'])} moves most ({most['change']:.3g} of its norm)"
        if self.table["score"].notna().any():
            best = self.table.sort_values("score", na_position="first").iloc[-1]
            text += (
                f"; the change of layer {int(best['layer'])} goes best with the scores: rho {best['score']:.2f} "
                f"[{best['low']:.2f}, {best['high']:.2f}], q {best['q']:.2g}"
            )
        return f"{text}. Control: {self.control}.{''.join(f' {note}' for note in self.notes)}"


@method(
    "series-profile",
    group="weights",
    question="Over many fine-tunes of one base, which layers move, and does that go with their scores?",
    papers=(
        "Massive Supervised Fine-tuning Experiments Reveal How Data, Layer, and Training Factors Shape LLM Alignment "
        "Quality",
    ),
    needs=Needs(folders=True),
    cost="one reading of each member's weights; no forward pass",
    example="--checkpoints ./adapter",
)
def series_profile(
    base: Any,
    tuned: Any = None,
    *,
    checkpoints: Sequence[str] = (),
    scores: Sequence[float] | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> SeriesProfile:
    """Profile of ||dW|| by layer over a series, and its rank correlation with the members' scores.

    Weights are read tensor by tensor from the files; the product of a LoRA's factors is never formed.

    Example:
        >>> probes.series_profile(wb.load_series("base", "run/", scores=[.1, .4, .6, .7]))  # doctest: +SKIP

    Args:
        base: The base, a pair, or a series from :func:`workbench.load_series`.
        tuned: The final model, the last member.
        checkpoints: The other members: folders or hub ids, or a Trainer's output folder with checkpoint-N in it.
        scores: A score per member, in their order, the final model's last.
        draws: Resamples of the interval, and random orders of the scores.
        seed: Their seed.

    Raises:
        UserError: Fewer than two members, members of another architecture, scores that do not match.
    """
    members = members_of(base, tuned, checkpoints, scores)
    profile, models = _profiled(members, progress or Silent())
    values = np.asarray(members.scores, dtype=np.float64)
    whole = profile.groupby("member", sort=False)[["change2", "base2"]].sum()
    total = np.sqrt((whole["change2"] / whole["base2"]).to_numpy(np.float64))
    places, shown = _places(profile)
    return SeriesProfile(
        table=_by_layer(profile, values, draws, seed),
        control=CONTROL,
        provenance=Provenance.of("series_profile", models, seed=seed),
        profile=profile,
        members=pd.DataFrame(
            {"member": members.names, "member_score": values, "change": total, "x": places[:, 0], "y": places[:, 1]}
        ),
        map_share=shown,
        notes=members.notes,
    )  # fmt: skip


def _profiled(members: Members, watch: Progress) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row per member and layer, and what all models are."""
    norms: dict[str, tuple[float, int]] = {}
    rows: list[pd.DataFrame] = []
    models: dict[str, Any] = {}
    watch.start("series", len(members.models))
    for name, opened in members.opened():
        table = pd.DataFrame(
            [
                {"layer": change.place.layer, "change2": change.change2, "base2": change.base2}
                for change in moved(opened, norms)
            ]
        )
        layers = table.groupby("layer", as_index=False).sum()
        rows.append(layers.assign(member=name, change=np.sqrt(layers["change2"] / layers["base2"])))
        sides = opened.identities()
        models |= {"base": sides["base"], name: sides["tuned"]}
        watch.advance()
    watch.finish()
    return pd.concat(rows, ignore_index=True), models


def _by_member(profile: pd.DataFrame) -> Float[np.ndarray, "member layer"]:
    wide = profile.pivot_table(index="member", columns="layer", values="change", sort=False)
    return wide.to_numpy(np.float64)


def _places(profile: pd.DataFrame) -> tuple[Float[np.ndarray, "member 2"], float]:
    """Two coordinates per member, the base at 0, and the part of the squared changes that they hold."""
    left, values, right = np.linalg.svd(_by_member(profile), full_matrices=False)
    signs = np.where(right.sum(1) < 0, -1.0, 1.0)
    places = np.zeros((len(left), 2))
    places[:, : len(values[:2])] = (left * values * signs)[:, :2]
    whole = float((values**2).sum())
    return places, float((values[:2] ** 2).sum() / whole) if whole else 0.0


def _by_layer(profile: pd.DataFrame, scores: Float[np.ndarray, " member"], draws: int, seed: int) -> pd.DataFrame:
    wide = _by_member(profile)
    shares = profile.groupby("layer")["change2"].sum()
    table = pd.DataFrame(
        {"layer": shares.index, "change": wide.mean(0), "layer_share": shares / max(shares.sum(), 1e-300)}
    )
    table = table.reset_index(drop=True)
    if np.isnan(scores).any() or len(scores) < 3:
        return table.assign(**dict.fromkeys(("score", "low", "high", "control", "q"), np.nan), n=len(scores))
    rho = spearman(wide, scores)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(scores), (draws, len(scores)))
    resampled = np.stack([spearman(wide[rows], scores[rows]) for rows in drawn])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    shuffled = np.abs(np.stack([spearman(wide, generator.permutation(scores)) for _ in range(draws)]))
    p = (1 + (shuffled >= np.abs(rho) - 1e-12).sum(0)) / (draws + 1)
    return table.assign(
        score=rho,
        low=np.minimum(low, rho),
        high=np.maximum(high, rho),
        control=shuffled.mean(0),
        q=q_values(p),
        n=len(scores),
    )


def spearman(
    wide: Float[np.ndarray, "member layer"], scores: Float[np.ndarray, " member"]
) -> Float[np.ndarray, " layer"]:
    """Rank correlation of every column with the scores; 0 where a column or the scores do not vary."""
    columns, ranks = rankdata(wide, axis=0), rankdata(scores)
    columns, ranks = columns - columns.mean(0), ranks - ranks.mean()
    lengths = np.sqrt((columns**2).sum(0) * (ranks**2).sum())
    return np.divide(ranks @ columns, lengths, out=np.zeros(columns.shape[1]), where=lengths > 0)
