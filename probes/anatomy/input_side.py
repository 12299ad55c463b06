"""input_side: whether all of a tuning enters at the word embeddings (AdaLink), how, and where it first shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.lens import kl
from probes.replay import counted, read_out
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, scored, with_q
from workbench.argument_checks import check_pair
from workbench.engine.dispatch import SiteHook, layer_readers, on_the_cpu
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.figures.weights import layer_bars
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

ENTRY = Site("resid_pre", 0)
EXACT = 1e-3
"""Nats of KL up to which the base with the tuned model's inputs counts as the tuned model."""


@dataclass(frozen=True, kw_only=True)
class InputSide(ProbeResult):
    """One row per layer: what a change of the inputs alone has become there.

    ``score``: KL (nats) of the tuned model's reading of the last token's residual from the base's, the mean over
    prompts; ``control``: the same where the inputs of the base are moved as far in random directions; ``q`` of the
    difference. ``moved``: ||dh|| / ||h||, ``moved_control`` under the random directions.
    """

    remainder: tuple[float, float, float]
    """KL (nats) of the tuned model's next word from that of the base when it is handed the tuned model's inputs, with
    its interval: 0 where all of the tuning enters there."""
    form: dict[str, float]
    """``linear``: share of the change of held-out words' embeddings that one linear map of the embedding explains (1
    for AdaLink's x + U D x), ``linear_control`` with the words exchanged, ``rank`` of that map (90 % of its squared
    norm); NaN where no embedding moved."""
    first: int | None
    """The first layer that reads the change as another next word than the random one (q < 0.05)."""
    resampled: str = "prompts"

    title: ClassVar[str] = "A change of the inputs, layer by layer"
    unit: ClassVar[str] = "KL of the reading from the base's (nats)"

    def figure(self) -> go.Figure:
        """The reading's change by layer."""
        return layer_bars(self.table, title=self.title, unit=self.unit)

    def summary(self) -> str:
        low, high = self.remainder[1:]
        all_of_it = "all of" if self.remainder[0] <= EXACT else "not all of"
        first = "no layer" if self.first is None else f"layer {self.first}"
        form = "no embedding moved" if np.isnan(self.form["linear"]) else (
            f"one linear map explains {self.form['linear']:.2f} of the change of unseen words (exchanged "
            f"{self.form['linear_control']:.2f})"
        )  # fmt: skip
        return (
            f"{all_of_it.capitalize()} the tuning enters at the embeddings: the base with the tuned inputs is "
            f"{self.remainder[0]:.2g} nats [{low:.2g}, {high:.2g}] from the tuned model; {form}; "
            f"{first} is the first to read another next word; over {self.resampled}. Control: {self.control}."
        )


@method(
    "input-side",
    group="weights",
    question="Does all of the tuning enter at the word embeddings, and at which layer does it first matter?",
    papers=(
        "Non-Intrusive Adaptation: Input-Centric Parameter-efficient Fine-Tuning for Versatile Multimodal Modeling",
    ),
    cost="four forward passes per prompt, and a reading per layer of three of them",
    any_adapter="whether a layer's next word moved otherwise than by random inputs, whatever moved it",
)
def input_side(
    pair: ModelPair, prompts: Prompts | Sequence[object], *, seed: int = 0, progress: Progress | None = None
) -> InputSide:
    """Hand the base the tuned model's inputs, and follow the change up through the layers.

    AdaLink (Wang et al. 2023) adds a low-rank map of the embedding to it and leaves the model alone; tuned embeddings
    and LoRA on them are its kin. What the base with those inputs does not do is tuning elsewhere. The random change has
    the same norm at every token.

    Args:
        pair: Both models, of one width.
        prompts: Any prompts.
        seed: Of the random directions, the held-out words and the intervals.

    Returns:
        An :class:`InputSide`. A base against itself moves nowhere.

    Raises:
        UserError: The models have another width or number of layers.
    """
    check_pair(pair, prompts)
    if (pair.base.d_model, pair.base.n_layers) != (pair.tuned.d_model, pair.tuned.n_layers):
        raise UserError("The tuned model's inputs are handed to the base: both need one width and number of layers.")
    rows = Prompts.of(prompts)
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    watch = progress or Silent()
    watch.start("input side", len(rows))
    generator = torch.Generator().manual_seed(seed)
    taken = []
    with counted(pair.base, pair.tuned) as passes:
        for row in tracked(ids, watch):
            taken.append(_one(pair, torch.tensor([row]), generator))
    watch.finish()
    table = _table(taken, rows, seed)
    remainder = scored(np.array([run.remainder for run in taken]), seed=seed, clusters=rows.clusters)
    beyond = table[(table["q"] < 0.05) & (table["score"] > table["control"])]
    return InputSide(
        table=table,
        control="the base's inputs moved as far in random directions, another one for every token",
        provenance=Provenance.of("input_side", pair, rows, seed=seed, forward_passes=passes.forward),
        remainder=(remainder["score"], remainder["low"], remainder["high"]),
        form=linear_form(*(_embeddings(model) for model in (pair.base, pair.tuned)), seed=seed),
        first=None if beyond.empty else int(beyond["layer"].min()),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


@dataclass(frozen=True)
class _Followed:
    """One prompt: [layer] KL and share moved, of the tuning and of the random change; KL that is left over."""

    change: Float[np.ndarray, " layer"]
    random: Float[np.ndarray, " layer"]
    moved: Float[np.ndarray, " layer"]
    random_moved: Float[np.ndarray, " layer"]
    remainder: float


def _one(pair: ModelPair, ids: Tensor, generator: torch.Generator) -> _Followed:
    base, tuned = (_run(model, ids) for model in (pair.base, pair.tuned))
    step = tuned.entry - base.entry
    away = torch.nn.functional.normalize(torch.randn(step.shape, generator=generator), dim=-1)
    handed = _run(pair.base, ids, tuned.entry)
    random = _run(pair.base, ids, base.entry + away * step.norm(dim=-1, keepdim=True))
    return _Followed(
        change=kl(tuned.readings, base.readings).numpy(), random=kl(random.readings, base.readings).numpy(),
        moved=_share(base, tuned), random_moved=_share(base, random),
        remainder=float(kl(tuned.readings[-1:], handed.readings[-1:])),
    )  # fmt: skip


@dataclass(frozen=True)
class _Run:
    entry: Float[Tensor, "pos d_model"]
    last: Float[Tensor, "layer d_model"]
    readings: Float[Tensor, "layer vocab"]


def _run(model: AdaptedModel, ids: Tensor, entry: Tensor | None = None) -> _Run:
    """One forward pass, with other inputs where they are given."""
    states: dict[int, Tensor] = {}
    entries: list[Tensor] = []

    def replace(value: Tensor, _ctx: Any) -> Tensor:
        assert entry is not None
        return entry.to(value)[None]

    hooks = [] if entry is None else [SiteHook(ENTRY, replace, edit=True)]
    hooks += [SiteHook(ENTRY, lambda value, _ctx: entries.append(on_the_cpu(value[0])))]
    hooks += layer_readers("resid_post", range(model.n_layers), states, on_the_cpu)
    with torch.no_grad(), model.hooked(hooks):
        logits = model.forward(ids, logits="last")
    assert logits is not None
    last = torch.stack([states[layer][0, -1] for layer in range(model.n_layers)])
    readings = read_out(model, last).float().cpu()
    readings[-1] = logits[0, -1].float().cpu()
    return _Run(entries[0], last, readings)


def _share(base: _Run, other: _Run) -> Float[np.ndarray, " layer"]:
    return ((other.last - base.last).norm(dim=-1) / base.last.norm(dim=-1).clamp_min(1e-12)).numpy()


def _table(taken: Sequence[_Followed], rows: Prompts, seed: int) -> pd.DataFrame:
    lines = []
    for layer in range(len(taken[0].change)):
        own, random = (np.array([getattr(run, name)[layer] for run in taken]) for name in ("change", "random"))
        lines.append({
            "layer": layer, **beside_control(own, random, rows.clusters, seed=seed),
            "moved": float(np.mean([run.moved[layer] for run in taken])),
            "moved_control": float(np.mean([run.random_moved[layer] for run in taken])), "n": len(taken),
        })  # fmt: skip
    return with_q(lines, keep_p=False)


def _embeddings(model: AdaptedModel) -> Float[Tensor, "word d_model"]:
    """What the model makes of every word at its embedding, adapters included."""
    with torch.no_grad(), model.active() as hf:
        ids = torch.arange(model.vocab_size, device=model.device)
        made: Tensor = hf.get_input_embeddings()(ids)
    return made.float().cpu()


def linear_form(before: Float[Tensor, "word d"], after: Float[Tensor, "word d"], *, seed: int = 0) -> dict[str, float]:
    """How much of the change of the embeddings one linear map of them makes: fitted on half of the words, told on the
    other half; 1 for x -> x + M x, 0 or below for a change that has nothing to do with the word's embedding."""
    count = min(len(before), len(after))
    x, change = before[:count].double(), (after[:count] - before[:count]).double()
    if not bool(change.any()):
        return {"linear": float("nan"), "linear_control": float("nan"), "rank": float("nan")}
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fit, held_out = order[: count // 2], order[count // 2 :]
    share, weights = _explained(x, change, fit, held_out)
    mixed, _ = _explained(
        x[torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1))], change, fit, held_out
    )
    values = torch.linalg.svdvals(weights).square().cumsum(0)
    rank = int((values < 0.9 * values[-1]).sum()) + 1
    return {"linear": share, "linear_control": mixed, "rank": float(rank)}


def _explained(x: Tensor, change: Tensor, fit: Tensor, held_out: Tensor) -> tuple[float, Tensor]:
    gram = x[fit].T @ x[fit]
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + ridge, x[fit].T @ change[fit])
    left = (change[held_out] - x[held_out] @ weights).square().sum()
    return float(1 - left / change[held_out].square().sum().clamp_min(1e-30)), weights
