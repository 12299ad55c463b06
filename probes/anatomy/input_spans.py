"""input_spans: whether an update reads the directions that its inputs vary along (EVA, CorDA), and with which rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import plotly.graph_objects as go
import torch
from torch import nn

from interventions.weightspace.swapping import base_parameters
from interventions.weightspace.task_vector import TaskVector
from probes.anatomy.spaces import Svd
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.weights.naming import place_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.figures.weights import cell_map
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.adapter_layers import bare_module
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class InputSpans(ProbeResult):
    """One row per changed linear map.

    ``score``: share of the squared norm of the map's inputs (in the base, at the prompts' tokens) that lies in the span
    the update reads, the mean over prompts; ``control``: of random spans of the same rank; ``q``: small where it holds
    more than random spans do, both over prompts and among the spans (one random span may suit all prompts);
    ``best``: of the leading directions of the inputs themselves, the most that this rank can hold. ``rank``: of the
    update, from its numbers and not from a config; ``rank90``: the fewest ranks with 90 % of its squared norm;
    ``largest``, ``smallest``: share of the base's output on these inputs that its rank-``rank`` largest and smallest
    covariance-oriented components carry (what CorDA's two modes would train).
    """

    title: ClassVar[str] = "What the update reads of its inputs"
    unit: ClassVar[str] = "share of the inputs inside the span"

    def figure(self) -> go.Figure:
        """The share beyond random spans, layer by module."""
        beyond = self.table.assign(score=self.table["score"] - self.table["control"])
        return cell_map(beyond, "module", title=self.title, unit="share beyond random spans")

    def summary(self) -> str:
        table = self.table
        ranks = table["rank"].unique()
        said = f"rank {ranks[0]:.0f}" if len(ranks) == 1 else f"ranks {ranks.min():.0f} to {ranks.max():.0f}"
        return (
            f"{len(table)} maps ({said}); {table['score'].mean():.2f} of the "
            f"inputs lies in the span the update reads, random spans {table['control'].mean():.2f}, at most "
            f"{table['best'].mean():.2f}; above random at q < 0.05 in "
            f"{int(((table['q'] < 0.05) & (table['score'] > table['control'])).sum())}. Control: {self.control}."
        )


@method(
    "input-spans",
    group="weights",
    question="Does the update read what its inputs vary along, and which rank has it in each module?",
    papers=(
        "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
        "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models",
    ),
    cost="one forward pass of the base, and two decompositions per changed map",
)
def input_spans(
    pair: Any,
    prompts: Any,
    *,
    draws: int = 1_000,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> InputSpans:
    """Project the inputs of every changed linear map onto the row span of its update.

    EVA starts A in the leading directions of the inputs, so its share is the best one; a LoRA that starts at random
    reads what a random span reads, until training turns it.

    Args:
        pair: Base and tuned model; of an adapter that rewrote the base (CorDA, PiSSA, KaSA), load the true base.
        prompts: Any prompts, of the task.
        draws: Random spans per map.
        seed: Of the random spans and the intervals.

    Raises:
        UserError: No linear map inside the layers differs.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    update = TaskVector.from_pair(pair)
    maps = _linear_maps(pair.base, update)
    if not maps:
        raise UserError("No linear map inside the layers differs between the two models: nothing to look at.")
    covariances = _covariances(pair.base, rows, maps, batch_size)
    watch = progress or Silent()
    watch.start("input spans", len(maps))
    table = []
    for number, (name, module) in tracked(enumerate(maps.items()), watch):
        change = update.changes[name].float().cpu()
        turned = _turned(module)
        svd = Svd.of(change.T if turned else change)
        weight = module.weight.detach().float().cpu()
        row = _row(svd, covariances[name], weight.T if turned else weight, rows.clusters, draws, seed + number)
        place = place_of(name)
        table.append({"layer": place.layer, "module": place.module, **row})
    watch.finish()
    return InputSpans(
        table=with_q(table, keep_p=False),
        control=f"random spans of the same rank on the same inputs ({draws} draws)",
        provenance=Provenance.of("input_spans", pair, rows, seed=seed, forward_passes=-(-len(rows) // batch_size)),
    )  # fmt: skip


def _turned(module: nn.Module) -> bool:
    """Whether the module keeps its weight as [into, out] (GPT-2)."""
    return not isinstance(module, nn.Linear)


def _linear_maps(base: AdaptedModel, update: TaskVector) -> dict[str, Any]:
    """Parameter name -> the linear map of the base that owns it, of those that moved inside the layers."""
    from transformers.pytorch_utils import Conv1D

    parameters = base_parameters(base.hf)
    owners = {}
    for module in base.hf.modules():
        inner = bare_module(module) or module
        if isinstance(inner, nn.Linear | Conv1D):
            owners[id(inner.weight)] = inner
    return {
        name: owners[id(parameters[name])]
        for name in update.changes
        if place_of(name).layer is not None
        and id(parameters[name]) in owners
        and bool((update.changes[name] != 0).any())
    }


def _covariances(
    base: AdaptedModel, rows: Prompts, maps: dict[str, Any], batch_size: int
) -> dict[str, Float[Tensor, "prompt into into"]]:
    """Second moments of the inputs of every map, summed over the tokens of each prompt."""
    sums: dict[str, list[Tensor]] = {name: [] for name in maps}
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            encoded = base.encode(rows[list(range(start, min(len(rows), start + batch_size)))])
            with _watched(maps, encoded.attention_mask.bool(), sums):
                base.forward(encoded, logits=None)
    return {name: torch.cat(parts) for name, parts in sums.items()}


@contextmanager
def _watched(maps: dict[str, Any], real: Tensor, sums: dict[str, list[Tensor]]) -> Iterator[None]:
    handles = []
    try:
        for name, module in maps.items():

            def hook(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                inputs = args[0].detach().float() * real.to(args[0].device)[..., None]
                sums[name].append(torch.einsum("bti,btj->bij", inputs, inputs).cpu())

            handles.append(module.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def share_inside(
    covariance: Float[Tensor, "prompt into into"], span: Float[Tensor, "into rank"]
) -> Float[np.ndarray, " prompt"]:
    """Share of each prompt's squared input norm in an orthonormal span."""
    inside = torch.einsum("ir,pij,jr->p", span, covariance, span)
    return (inside / covariance.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(1e-30)).numpy()


def _row(svd: Svd, covariance: Tensor, weight: Tensor, clusters: np.ndarray, draws: int, seed: int) -> dict[str, float]:
    own = share_inside(covariance, svd.right)
    size, rank = svd.right.shape
    usual = (covariance / covariance.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(1e-30)[:, None, None]).mean(0)
    values = torch.linalg.eigvalsh(usual).clamp_min(0)
    drawn = _shares_of_random_spans(values, rank, draws, seed)
    over_prompts = beside_control(own, np.full(len(own), rank / size), clusters, seed=seed)
    among_spans = (1 + (drawn >= own.mean()).sum()) / (1 + draws)
    root = _root(covariance.sum(0))
    parts = torch.linalg.svdvals(weight @ root).square()
    return {
        **over_prompts,
        "control": float(drawn.mean()) if draws else rank / size,
        "p": max(over_prompts["p"], float(among_spans)),
        "best": float(values[-rank:].sum()),
        "rank": float(rank),
        "rank90": float(svd.energy_rank(0.9)),
        "largest": float(parts[:rank].sum() / parts.sum()),
        "smallest": float(parts[-rank:].sum() / parts.sum()),
        "n": len(own),
    }


def _shares_of_random_spans(
    values: Float[Tensor, " into"], rank: int, draws: int, seed: int
) -> Float[np.ndarray, " draw"]:
    """What random spans hold of inputs with these eigenvalues: which way the eigenvectors point is of no account."""
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    spans = (torch.linalg.qr(torch.randn(len(values), rank, generator=generator))[0] for _ in range(draws))
    return np.array([float(values @ span.square().sum(1)) for span in spans])


def _root(matrix: Float[Tensor, "into into"]) -> Float[Tensor, "into into"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
