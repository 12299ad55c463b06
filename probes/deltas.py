"""How activations moved in tuning: per site, layer, head and position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.call_settings import call_settings, of_recording
from probes.principal import Principal, direction_readings, principal, shown
from probes.resampling import row_clusters, units_of
from probes.results import ProbeResult
from probes.shift import mean_shift
from workbench.argument_checks import check_recording
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import Recorded, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.recording.recording import Recording
from workbench.recording.sink_rows import Tokens, averaged_rows, massive_rows
from workbench.stats.fdr import q_values
from workbench.typing import Bool, Float, Int, Tensor

HEADED = ("z", "q", "k", "v")
WIDE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites of the residual stream's width: their directions can be read through the unembedding."""


@dataclass(frozen=True, kw_only=True)
class ActivationDelta(ProbeResult):
    """What moved, and along which directions.

    ``table``: site, layer, head or position; ``score`` is the length of the mean shift (mean over prompts of tuned -
    base, the noise's share taken out) relative to the base's root mean square length; ``norm_ratio``; ``cosine``
    (mean over rows); ``cka`` (linear, over rows). ``control``: the score under flipped signs, around 0, with its
    95 % range.
    """

    directions: pd.DataFrame
    """site, layer, kind (mean, centred, uncentred), rank, share, up, down: tokens raised and lowered."""
    vectors: dict[str, Tensor]
    """``site/kind`` -> [k, d]: the directions themselves."""
    streamed: bool
    resampled: str = "prompts"
    """What intervals and tests draw, and how many there are: prompts, or groups of prompts."""
    tokens: str = "all recorded tokens"
    """Which tokens were averaged."""

    title: ClassVar[str] = "Activation difference"
    unit: ClassVar[str] = "mean shift relative to the base's length"

    def figure(self, site: str | None = None) -> go.Figure:
        """One kind of site (z by heads, else by layer, or by layer and position where recorded so)."""
        from workbench.figures.deltas import delta_figure

        return delta_figure(self.table, site or str(self.table["site"].iloc[0]))

    def summary(self) -> str:
        best = self.frame().iloc[0]
        place = f"{best['site']} of layer {best['layer']:.0f}"
        if self.streamed:
            where = "streamed statistics, so no interval over prompts"
            return f"Largest shift: {place}, {best['score']:.3g}; {where}; {self.tokens}"
        moved = int((self.table["q"] < 0.05).sum())
        return (
            f"{moved} of {len(self.table)} cells moved (q < 0.05); most: {place}, {best['score']:.3g} "
            f"[{best['low']:.3g}, {best['high']:.3g}], over {self.resampled}; {self.tokens}; control: {self.control}"
        )


@method(
    "activations",
    gives=("directions",),
    group="activations",
    question="How far did the activations move, at which site and layer?",
    records=Recorded(sites=("resid_post", "z")),
    cost="one forward pass of each model",
    example="--sites resid_post,z",
    any_adapter="whether states moved at all",
)
def activation_delta(
    recording: Recording,
    *,
    by_position: bool = False,
    components: int = 4,
    model: AdaptedModel | None = None,
    tokens: Tokens = "content",
    seed: int = 0,
    progress: Progress | None = None,
) -> ActivationDelta:
    """Compare the activations of base and tuned on the same tokens, as recorded.

    Prompts are the units, or their groups where they have some; a prompt's rows are averaged first. ``by_position``:
    one cell per position counted from the prompt's start, instead of one for all. ``components``: principal directions
    of the row-by-row differences, centred and uncentred (0: none); with ``model`` they and the mean are read through
    its unembedding. ``tokens``: ``"content"`` leaves attention sinks (the first token, special tokens, the chat
    template's, rows more than 20 times as long as the median) out of means over tokens, ``"all"`` takes them in; a
    cell of ``by_position`` is no such mean. Where the base puts out nothing but zeros, the score is the shift's own
    length.
    A recording of statistics only (``store=None``) gives shifts and norms without intervals, cosines
    or directions. No forward passes: the recording is read. Raises :class:`UserError` unless both models were recorded
    on two or more prompts, of two or more groups.

    Args:
        by_position: One cell per position counted from the prompt's start, instead of one for all.
        components: Principal directions of the differences, centred and uncentred; 0 for none.
        tokens: Which of the recorded tokens enter the means: content leaves attention sinks out, or all.
    """
    check_recording(recording)
    if not {"base", "tuned"} <= set(recording.roles):
        raise UserError(
            f"The recording holds {', '.join(recording.roles)}; a difference needs base and tuned: record a pair."
        )
    common: dict[str, Any] = {
        "control": "the prompts' signs flipped at random",
        "provenance": of_recording(
            "activation_delta", recording, ("base", "tuned"), seed, call_settings(None, model=model)
        ),
    }  # fmt: skip
    if recording.moments:
        table = _streamed(recording.moments)
        return ActivationDelta(
            table=table, directions=_no_directions(), vectors={}, streamed=True, tokens=_streamed_tokens(recording),
            **common,
        )  # fmt: skip
    clusters = _units(recording)
    averaged = averaged_rows(recording.index, "all" if by_position else tokens, massive_rows(recording))
    bar = progress or Silent()
    sites = [site for site in map(Site.parse, _plain_sites(recording)) if site.kind in (*HEADED, *WIDE, "mlp_post")]
    bar.start("activation differences", len(sites))
    parts, directions = [], []
    vectors: dict[str, Tensor] = {}
    for site in sites:
        rows = _SiteRows.of(recording, site, clusters, averaged.rows)
        parts += [rows.measured(rows_there, seed).assign(**cell) for cell, rows_there in rows.cells(by_position)]
        if components and site.kind not in HEADED:
            own = rows.directions(components, model)
            directions += own[0]
            vectors |= own[1]
        bar.advance()
    bar.finish()
    table = pd.concat(parts, ignore_index=True)
    return ActivationDelta(
        table=table.drop(columns="p").assign(q=q_values(table["p"].to_numpy())),
        directions=pd.DataFrame(directions) if directions else _no_directions(),
        vectors=vectors,
        streamed=False,
        resampled=units_of(clusters[np.unique(recording.index["prompt"], return_index=True)[1]]),
        tokens=averaged.text,
        **common,
    )


def _units(recording: Recording) -> Int[np.ndarray, " row"]:
    """What each row is drawn with; at least two of them."""
    if recording.n_prompts < 2:
        raise UserError("One prompt has no spread to judge a shift by: record at least two.")
    clusters = row_clusters(recording.index)
    if clusters.max() < 1:
        raise UserError(
            f"All {recording.n_prompts} prompts are of one group, which has no spread to judge a shift by: record "
            "prompts of at least two groups, or without groups if they do not depend on each other."
        )
    return clusters


@dataclass(frozen=True)
class _SiteRows:
    """One site of both models: [row, part, d], where a part is a head, or the whole."""

    site: Site
    base: Float[Tensor, "row part d"]
    tuned: Float[Tensor, "row part d"]
    prompt: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    cluster: Int[Tensor, " row"]

    @classmethod
    def of(
        cls, recording: Recording, site: Site, clusters: Int[np.ndarray, " row"], averaged: Bool[np.ndarray, " row"]
    ) -> _SiteRows:
        sides = [recording[role][site.name][:].float() for role in ("base", "tuned")]
        base, tuned = (side if side.ndim == 3 else side[:, None] for side in sides)
        index = recording.index
        finite = (base.isfinite() & tuned.isfinite()).flatten(1).all(1) & torch.from_numpy(averaged)
        prompt, position = (torch.tensor(index[name].to_numpy()) for name in ("prompt", "position"))
        cluster = torch.from_numpy(clusters)
        return cls(site, base[finite], tuned[finite], prompt[finite], position[finite], cluster[finite])

    def cells(self, by_position: bool) -> list[tuple[dict[str, int], Tensor]]:
        """Which rows make each cell; positions that fewer than two units have are left out."""
        if not by_position:
            return [({}, torch.ones_like(self.prompt, dtype=torch.bool))]
        cells = []
        for position in self.position.unique().tolist():
            rows = self.position == position
            if len(self.cluster[rows].unique()) > 1:
                cells.append(({"position": position}, rows))
        return cells

    def measured(self, rows: Tensor, seed: int) -> pd.DataFrame:
        base, tuned = self.base[rows], self.tuned[rows]
        means, clusters = _per_prompt(tuned - base, self.prompt[rows], self.cluster[rows])
        shift = mean_shift(means, seed, clusters)
        length = base.square().sum(-1).mean(0).sqrt().numpy()
        from_zero = length == 0  # nothing to be a share of: the shift itself
        length = np.where(from_zero, 1.0, length)
        n_parts = base.shape[1]
        table = {
            "site": self.site.kind,
            "layer": self.site.layer,
            "score": shift.size / length,
            "low": shift.low / length,
            "high": shift.high / length,
            "control": 0.0,
            "control_low": shift.control_low / length,
            "control_high": shift.control_high / length,
            "p": shift.p,
            "norm_ratio": np.where(from_zero, np.nan, (tuned.norm(dim=-1).mean(0) / base.norm(dim=-1).mean(0)).numpy()),
            "cosine": torch.nn.functional.cosine_similarity(base, tuned, dim=-1).mean(0).numpy(),
            "cka": linear_cka(base.transpose(0, 1), tuned.transpose(0, 1)).numpy(),
            "n": len(clusters),
        }
        if self.site.kind in HEADED:
            table["head"] = np.arange(n_parts)
        return pd.DataFrame(table, index=range(n_parts))

    def directions(self, k: int, model: AdaptedModel | None) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The mean shift and the principal directions, with their readings where the width allows."""
        moved = (self.tuned - self.base)[:, 0]
        mean = moved.mean(0)
        unit = torch.nn.functional.normalize(mean, dim=0)
        along = mean.square().sum() / moved.square().sum(-1).mean().clamp_min(1e-30)
        moves = int(bool(mean.any()))  # nothing moved: no direction
        kinds = {
            "mean": Principal(unit[None][:moves], along[None][:moves]),
            "centred": principal(moved, k, centred=True),
            "uncentred": principal(moved, k, centred=False),
        }
        rows, vectors = [], {}
        for kind, leading in kinds.items():
            vectors[f"{self.site.name}/{kind}"] = leading.directions
            said = [("", "")] * len(leading.directions)
            if model is not None and self.site.kind in WIDE and len(leading.directions):
                size = float(self.base[:, 0].norm(dim=-1).mean())
                readings = direction_readings(model, leading.directions, self.base[:, 0].mean(0), 0.1 * size)
                said = [(shown(reading.up), shown(reading.down)) for reading in readings]
            place = {"site": self.site.kind, "layer": self.site.layer, "kind": kind}
            for rank, (share, (up, down)) in enumerate(zip(leading.share.tolist(), said, strict=True)):
                rows.append({**place, "rank": rank, "share": share, "up": up, "down": down})
        return rows, vectors


def linear_cka(x: Float[Tensor, "cell row d"], y: Float[Tensor, "cell row d"]) -> Float[Tensor, " cell"]:
    """Linear centred kernel alignment of two representations of the same rows (Kornblith et al. 2019): 1 when they
    agree up to rotation and scale. NaN where one does not vary."""
    x, y = (states.double() - states.double().mean(1, keepdim=True) for states in (x, y))
    if x.shape[1] < x.shape[2]:
        a, b = torch.bmm(x, x.mT), torch.bmm(y, y.mT)
        cross, own_x, own_y = (a * b).sum((1, 2)), (a * a).sum((1, 2)), (b * b).sum((1, 2))
    else:
        cross, own_x, own_y = (torch.bmm(p.mT, q).square().sum((1, 2)) for p, q in ((y, x), (x, x), (y, y)))
    return (cross / (own_x * own_y).sqrt()).float()


def _per_prompt(
    rows: Float[Tensor, "row part d"], prompt: Int[Tensor, " row"], cluster: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "prompt part d"], Int[np.ndarray, " prompt"]]:
    """The mean of each prompt's rows, and the prompts' clusters."""
    _, number = prompt.unique(return_inverse=True)
    sums = rows.new_zeros(int(number.max()) + 1, *rows.shape[1:]).index_add_(0, number, rows)
    counts = torch.bincount(number)
    return sums / counts[:, None, None], cluster.new_zeros(len(counts)).scatter_(0, number, cluster).numpy()


def _streamed(moments: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Shifts and norms from means and variances; rows count as units, so no interval is given."""
    tables = []
    for name, moved in moments["difference"].items():
        site = Site.parse(name) if name.startswith("blocks.") and name.count(".hook_") == 1 else None
        if site is None or site.kind not in (*HEADED, *WIDE, "mlp_post"):
            continue
        base, tuned = moments["base"][name], moments["tuned"][name]
        length, after = (torch.atleast_1d(_mean_square(side)).sqrt() for side in (base, tuned))
        scale = torch.where(length == 0, 1.0, length)
        squared = torch.atleast_1d((moved.mean.square() - moved.variance / moved.count).sum(-1))
        table: dict[str, Any] = {
            "site": site.kind,
            "layer": site.layer,
            "score": (squared.sign() * squared.abs().sqrt() / scale).numpy(),
            **dict.fromkeys(("low", "high", "control", "q", "cosine", "cka"), np.nan),
            "norm_ratio": (after / length).numpy(),
            "n": moved.count,
        }
        if site.kind in HEADED:
            table["head"] = np.arange(len(length))
        tables.append(pd.DataFrame(table, index=range(len(length))))
    if not tables:
        raise UserError("The recording's statistics cover no residual, attention or MLP site: record one of them.")
    return pd.concat(tables, ignore_index=True)


def _streamed_tokens(recording: Recording) -> str:
    """Streamed statistics hold what was recorded; a sink among it cannot be taken out any more."""
    positions = recording.config.get("positions", {})
    at = positions.get("at") if isinstance(positions, dict) else positions
    if at in ("all", "prompt"):
        return "all recorded tokens, sinks included: record positions='content' to leave them out"
    return f"tokens recorded at {at!r}"


def _mean_square(moments: Any) -> Tensor:
    """The mean squared length of a row."""
    n = moments.count
    return (moments.mean.square() + moments.variance * (n - 1) / n).sum(-1)


def _plain_sites(recording: Recording) -> Sequence[str]:
    return [name for name in recording.sites if name.startswith("blocks.")]


def _no_directions() -> pd.DataFrame:
    return pd.DataFrame(columns=["site", "layer", "kind", "rank", "share", "up", "down"])
