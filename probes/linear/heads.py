"""Which attention heads a label can be read from: a cross-validated linear probe on every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy import stats

from probes.call_settings import of_recording
from probes.linear.folds import folds_of_shuffled, make_folds, numbered, shuffled_labels, two_classes
from probes.linear.logistic import Features, cell_chunks, solve
from probes.results import ProbeResult
from workbench.argument_checks import check_recording
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent
from workbench.recording.recording import Recording
from workbench.stats.fdr import q_values
from workbench.stats.shares import share_intervals
from workbench.typing import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from interventions import Recipe

BUDGET = 2**20
"""Numbers of features worked on at once: a few heads, so that they stay in the processor's cache."""
GPU_BUDGET = 2**28
NULL_TOLERANCE = 0.1
"""Nats that a fit to shuffled labels may still have to go: of these fits the held-out accuracy alone is read."""


@dataclass(frozen=True, kw_only=True)
class HeadProbe(ProbeResult):
    """Accuracy of a linear probe on every head, on groups it was not trained on.

    ``table``: layer, head, score with its interval over groups, ``control`` (the same with meaningless labels, mean
    over draws), ``sigma``, ``cosine`` (between probe weight and mass-mean direction).
    """

    classes: tuple[str, str]
    """Negative and positive class; directions point to the positive one."""
    weight: Float[Tensor, "layer head d_head"]
    """The probe's weight, fitted on all rows, in units of z."""
    bias: Float[Tensor, "layer head"]
    mass_mean: Float[Tensor, "layer head d_head"]
    """Mean of the positive minus mean of the negative rows, normalised."""
    sigma: Float[Tensor, "layer head"]
    """Standard deviation of the rows' projections on ``mass_mean``."""
    layers: tuple[int, ...]
    """The model's layer of each entry of the tensors."""
    chance: float
    """Share of the larger class: what a constant answer scores."""

    title: ClassVar[str] = "Head probe"
    unit: ClassVar[str] = "held-out accuracy"

    def top(self, k: int) -> list[tuple[int, int]]:
        """The k heads (layer, head) of highest accuracy."""
        best = self.frame().head(k)
        return [(int(layer), int(head)) for layer, head in zip(best["layer"], best["head"], strict=True)]

    def recipe(
        self,
        k: int = 48,
        strength: float = 15.0,
        direction: Literal["mass_mean", "weight"] = "mass_mean",
        positions: str = "last+generated",
    ) -> Recipe:
        """Inference-time intervention: ``strength`` standard deviations along each of the top k heads' directions."""
        from interventions import HeadOffset, Recipe

        place = {layer: number for number, layer in enumerate(self.layers)}
        vectors = {}
        for layer, head in self.top(k):
            along = torch.nn.functional.normalize(getattr(self, direction)[place[layer], head], dim=0)
            vectors[layer, head] = self.sigma[place[layer], head] * along
        return Recipe([HeadOffset(vectors, strength=strength, positions=positions)])

    def summary(self) -> str:
        best = self.frame().iloc[0]
        significant = int((self.table["q"] < 0.05).sum())
        return (
            f"{significant} of {len(self.table)} heads tell {self.classes[1]} from {self.classes[0]} (q < 0.05); best "
            f"L{best['layer']:.0f}H{best['head']:.0f}: {best['score']:.1%} [{best['low']:.1%}, {best['high']:.1%}], "
            f"shuffled labels {best['control']:.1%}, larger class {self.chance:.1%}"
        )

    def figure(self) -> go.Figure:
        """Layer by head, coloured by accuracy above the shuffled labels'."""
        from workbench.figures.heads import head_heatmap

        shift = {name: self.table[name] - self.table["control"] for name in ("score", "low", "high")}
        table = self.table.assign(**shift, control=0.0)
        title = f"Head probe: {self.classes[1]} from {self.classes[0]} (n = {self.provenance.n_prompts} prompts)"
        return head_heatmap(table, title=title, score="accuracy above shuffled labels")


@method(
    "head-probe",
    gives=("probed heads", "ranked heads"),
    group="heads",
    question="In which heads can the prompts' label be read off?",
    papers=("LoFiT: Localized Fine-tuning on LLM Representations",),
    records=Recorded(sites=("z",)),
    needs=Needs(columns=("label",)),
    cost="one forward pass of each model; a linear probe per head and fold",
    example="--labels topic",
    any_adapter="whether labels can be read off a head, whatever made them readable",
)
def head_probe(  # noqa: PLR0913 (a public call; all but two by keyword)
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    role: Literal["tuned", "base"] | str = "tuned",
    groups: Annotated[Sequence[Any] | None, As("column")] = None,
    folds: int | Sequence[int] = 5,
    ridge: float = 1.0,
    draws: int = 10,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> HeadProbe:
    """Fit one linear probe per recorded head (sites ``z``) and test it on held-out groups (Li et al. 2023).

    ``labels`` and ``groups``: one per prompt; by default the prompts' own columns. A prompt without a group is its
    own. ``folds``: a number, or the fold of every prompt; a group split over folds is refused. Each head's features
    are divided by their root mean square, then fitted with scikit-learn's objective (C = 1 / ridge). q-values come
    from the shuffled labels' scores of all heads, taken as normal. No forward passes: the recording is read.
    ``device``: where the fits run ("cuda" for large recordings); the result is on the CPU.

    Args:
        labels: The column of the prompts that holds their class; default label.
        role: Whose activations are read.
        groups: A column whose values never straddle folds; default group.
        folds: Folds of the cross-validation.
    """
    check_recording(recording)
    sites = [site for site in map(Site.parse, recording.sites) if site.kind == "z"]
    if not sites:
        raise UserError('The recording has no z (the heads\' outputs): record with sites="z" to probe heads.')
    data = _Rows.of(recording, labels, groups, folds, draws, seed)
    bar = progress or Silent()
    bar.start("head probe", len(sites))
    layers_probed = []
    for site in sites:
        layers_probed.append(_probe_layer(recording[role][site.name][:].to(device), data, ridge))
        bar.advance()
    bar.finish()
    layers = tuple(int(site.layer or 0) for site in sites)
    table = _table(layers_probed, layers, data, seed)
    return HeadProbe(
        table=table,
        control=f"the same probes on shuffled labels ({draws} draws)",
        provenance=of_recording("head_probe", recording, (role,), seed),
        classes=data.classes,
        weight=torch.stack([layer.weight for layer in layers_probed]),
        bias=torch.stack([layer.bias for layer in layers_probed]),
        mass_mean=torch.stack([layer.mass_mean for layer in layers_probed]),
        sigma=torch.stack([layer.sigma for layer in layers_probed]),
        layers=layers,
        chance=float(max(data.y.mean(), 1 - data.y.mean())),
    )


@dataclass(frozen=True)
class _Rows:
    y: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    shuffled: np.ndarray
    """[row, draw]"""
    shuffled_folds: np.ndarray
    """[row, draw]"""
    classes: tuple[str, str]

    @classmethod
    def of(
        cls, recording: Recording, labels: Any, groups: Any, folds: int | Sequence[int], draws: int, seed: int
    ) -> _Rows:
        index = recording.index
        prompt = index["prompt"].to_numpy()
        values = index["label"].tolist() if labels is None else _per_prompt(labels, prompt, "labels")
        named = index["group"].tolist() if groups is None else _per_prompt(groups, prompt, "groups")
        y, classes = two_classes(values)
        alone = [f"prompt {p}" if g is None else f"group {g}" for p, g in zip(prompt, named, strict=True)]
        numbers = numbered(alone)
        split = folds if isinstance(folds, int) else _per_prompt(folds, prompt, "folds")
        fold_of = make_folds(split, numbers, y, seed)
        shuffled = shuffled_labels(y, numbers, draws, seed)
        return cls(y, numbers, fold_of, shuffled, folds_of_shuffled(split, fold_of, numbers, shuffled, seed), classes)


def _per_prompt(values: Sequence[Any], prompt: np.ndarray, what: str) -> list[Any]:
    if len(values) <= prompt.max():
        raise UserError(f"There are {len(values)} {what} and {prompt.max() + 1} prompts; give one for each prompt.")
    return [values[number] for number in prompt]


@dataclass(frozen=True)
class _Layer:
    right: Bool[Tensor, "head row"]
    """Whether each held-out row was told right."""
    null: Float[Tensor, "head draw"]
    """Accuracy on shuffled labels."""
    weight: Float[Tensor, "head d_head"]
    bias: Float[Tensor, " head"]
    mass_mean: Float[Tensor, "head d_head"]
    sigma: Float[Tensor, " head"]


class _Fits(NamedTuple):
    """Labels, rows and held-out rows of every fit to a head, as :func:`solve` takes them."""

    targets: Float[Tensor, "fit row"]
    rows: Float[Tensor, "fit row"]
    out: Bool[Tensor, "fit row"]

    @classmethod
    def of(cls, labels: Bool[np.ndarray, "row draw"], folds: Int[np.ndarray, "row draw"], like: Tensor) -> _Fits:
        """One fit for each fold of each draw, fold by fold."""
        numbers = np.arange(folds.max() + 1)
        out = torch.from_numpy((folds.T[:, None] == numbers[:, None]).reshape(-1, len(folds))).to(like.device)
        dtype = torch.promote_types(like.dtype, torch.float32)
        targets = torch.from_numpy(labels.T).to(like.device, dtype).repeat_interleave(len(numbers), 0)
        return cls(targets, (~out).to(dtype), out)

    def and_all_rows(self) -> _Fits:
        """A fit to all rows before the others, with the labels of the first."""
        return _Fits(
            torch.cat([self.targets[:1], self.targets]),
            torch.cat([torch.ones_like(self.rows[:1]), self.rows]),
            torch.cat([torch.zeros_like(self.out[:1]), self.out]),
        )


def _probe_layer(z: Float[Tensor, "row head d_head"], data: _Rows, ridge: float) -> _Layer:
    true = _Fits.of(data.y[:, None], data.folds[:, None], z).and_all_rows()
    shuffled = _Fits.of(data.shuffled, data.shuffled_folds, z)
    draws = data.shuffled.shape[1]
    parts = []
    for heads in cell_chunks(z.shape[1], len(z), z.shape[2], _budget(z)):
        features = Features.of(z[:, heads], ridge, standard=True)
        parts.append(_probe_heads(features, true, _told_right(features, shuffled, draws)))
    return _Layer(*(torch.cat([getattr(part, name) for part in parts]) for name in _Layer.__annotations__))


def _budget(z: Tensor) -> int:
    return GPU_BUDGET if z.is_cuda else BUDGET


def _probe_heads(features: Features, true: _Fits, null: Float[Tensor, "head draw"]) -> _Layer:
    solution = solve(features, true.targets, true.rows)
    right = ((solution.logits > 0) == true.targets.bool()) & true.out
    mass_mean = _mass_mean(features.x, true.targets[0])
    along = torch.bmm(mass_mean[:, None], features.x[..., :-1].mT)[:, 0]  # [head, row]
    return _Layer(
        right=right.any(1).cpu(),
        null=null.cpu(),
        weight=solution.weights[:, 0, :-1].cpu(),
        bias=solution.weights[:, 0, -1].cpu(),
        mass_mean=mass_mean.cpu(),
        sigma=along.std(1).cpu(),
    )


def _mass_mean(x: Float[Tensor, "head row d_and_1"], y: Float[Tensor, " row"]) -> Float[Tensor, "head d"]:
    contrast = y / y.sum() - (1 - y) / (1 - y).sum()
    apart = torch.bmm(contrast.expand(len(x), 1, -1), x)[:, 0, :-1]
    return torch.nn.functional.normalize(apart, dim=-1)


def _told_right(features: Features, shuffled: _Fits, draws: int) -> Float[Tensor, "head draw"]:
    """Held-out accuracy for each draw of shuffled labels."""
    x, (targets, rows, out) = features.x, shuffled
    # right = said no to a negative + said yes to a positive - said yes to a negative
    gained, noes = (2 * targets - 1) * out, (out * (1 - targets)).sum(-1)
    right = []
    for heads in cell_chunks(len(x), x.shape[1], len(out), _budget(x)):
        logits = solve(features.part(heads), targets, rows, NULL_TOLERANCE).logits
        right.append(noes + logits.gt_(0).mul_(gained).sum(-1))
    return torch.cat(right).unflatten(1, (draws, -1)).sum(-1).to(torch.float32) / x.shape[1]


def _table(layers_probed: Sequence[_Layer], layers: Sequence[int], data: _Rows, seed: int) -> pd.DataFrame:
    right = torch.cat([layer.right for layer in layers_probed]).numpy().T  # [row, cell]
    null = torch.cat([layer.null for layer in layers_probed]).numpy()  # [cell, draw]
    band = share_intervals(right, clusters=data.groups, seed=seed)
    # A normal tail: with ten draws a head the counted p-value could not get below 1 / 10 of a single head's share.
    # The heads share the draws, so their mean is no surer than one of as many draws: hence 1 + 1 / draws.
    spread = float(null.std()) * np.sqrt(1 + 1 / null.shape[1])
    p = stats.norm.sf((band.estimate - null.mean()) / max(spread, 1e-12))
    heads = [len(layer.bias) for layer in layers_probed]
    return pd.DataFrame(
        {
            "layer": np.repeat(layers, heads),
            "head": np.concatenate([np.arange(count) for count in heads]),
            "score": band.estimate,
            "low": band.low,
            "high": band.high,
            "control": null.mean(1),
            "q": q_values(p),
            "sigma": torch.cat([layer.sigma for layer in layers_probed]).numpy(),
            "cosine": torch.cat(
                [torch.nn.functional.cosine_similarity(layer.weight, layer.mass_mean) for layer in layers_probed]
            ).numpy(),
        }
    )
