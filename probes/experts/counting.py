"""How often the tokens of each prompt select each expert; one forward pass, no vocabulary projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.routing import Routing
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts.encode import batches, pad_left
from workbench.typing import Float, Int, Tensor

Phase = Literal["prefill", "decode"]
Excluded = Literal["none", "special", "template"] | Sequence[int] | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExpertCounts:
    """Selections of every expert by the counted tokens of every prompt, in one phase."""

    counts: Float[np.ndarray, "prompt layer expert"]
    tokens: Float[np.ndarray, " prompt"]
    """How many tokens were counted."""
    layers: tuple[int, ...]
    """The layer of the model that each entry of the layer axis is; dense layers are left out."""
    passes: int

    def minus(self, other: ExpertCounts) -> ExpertCounts:
        """The change of the counts from ``other`` to these, on the same tokens of the same prompts."""
        return replace(self, counts=self.counts - other.counts, passes=self.passes + other.passes)

    @property
    def shares(self) -> Float[np.ndarray, "prompt layer expert"]:
        """The share of each prompt's counted tokens that selected each expert; NaN for a prompt without any."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.counts / self.tokens[:, None, None]


def require_experts(model: AdaptedModel) -> None:
    """Raise :class:`UserError` for a dense model."""
    if not model.moe_layers:
        raise UserError(
            f"{model.name!r} has no mixture-of-experts layer ({model.inner.config.model_type} is dense): expert "
            "probes need a router; use head_probe, patching or weight_delta on this model."
        )


def content(rows: Sequence[Sequence[int]], excluded: Excluded, special: Sequence[int]) -> list[np.ndarray]:
    """Which tokens of each prompt count: a bool array per row.

    ``template`` leaves out special tokens and what all prompts share at their beginning and end, since both
    classes would share it; ``special`` only special tokens; ids leave out those tokens; a function of token ids
    [pos] gives True for what is left out. Raises :class:`UserError` naming the prompt when nothing is left.
    """
    masks = [~_left_out(np.asarray(row), excluded, special) for row in rows]
    if excluded == "template" and len(rows) > 1:
        start, end = _shared(rows), _shared([row[::-1] for row in rows])
        for mask in masks:
            mask[:start] = False
            mask[max(start, len(mask) - end) :] = False
    for number, mask in enumerate(masks):
        if not mask.any():
            raise UserError(
                f"Prompt {number} has no token left to count after leaving out {excluded!r} tokens: "
                "use exclude='special' or 'none', or remove the prompt."
            )
    return masks


def _left_out(row: np.ndarray, excluded: Excluded, special: Sequence[int]) -> np.ndarray:
    if callable(excluded):
        return np.asarray(excluded(torch.from_numpy(row))).astype(bool)
    if isinstance(excluded, str):
        if excluded not in ("none", "special", "template"):
            raise UserError(f"exclude={excluded!r} is unknown: use 'none', 'special', 'template', ids or a function.")
        return np.isin(row, [] if excluded == "none" else list(special))
    return np.isin(row, list(excluded))


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning of all rows."""
    for place, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(len(row) for row in rows)


def count_experts(
    model: AdaptedModel,
    rows: Sequence[Sequence[int]],
    counted: Sequence[Sequence[np.ndarray]],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[ExpertCounts]:
    """Run every row of token ids once and count, for each set of masks in ``counted`` (one bool array per row), which
    experts the marked tokens select. Padding never counts."""
    report = progress or Silent()
    plan = batches([len(row) for row in rows], batch_size)
    counts = torch.zeros(len(counted), len(rows), len(model.moe_layers), model.n_experts)
    report.start("Counting experts", len(plan))
    for members in plan:
        batch = pad_left([rows[row] for row in members], pad_id(model.tokenizer) if model.tokenizer else 0)
        width = batch.input_ids.shape[1]
        masks = torch.zeros(len(counted), len(members), width, device=model.device)
        for group, marked in enumerate(counted):
            for place, row in enumerate(members):
                masks[group, place, width - len(rows[row]) :] = torch.from_numpy(marked[row]).float()
        batch_counts = torch.zeros(
            len(counted), len(members), len(model.moe_layers), model.n_experts, device=model.device
        )
        hooks = [
            SiteHook(Site("router", layer), _counter(batch_counts[:, :, place], masks))
            for place, layer in enumerate(model.moe_layers)
        ]
        with model.hooked(hooks, stop=True):
            model.forward(batch, logits=None)
        counts[:, members] = batch_counts.cpu()
        report.advance()
    report.finish()
    return [
        ExpertCounts(
            counts[group].double().numpy(),
            np.array([float(mask.sum()) for mask in marked]),
            tuple(model.moe_layers),
            len(plan),
        )
        for group, marked in enumerate(counted)
    ]


def _counter(
    counts: Float[Tensor, "group batch expert"], masks: Float[Tensor, "group batch pos"]
) -> Callable[[Routing, ForwardContext], None]:
    def count(value: Routing, _ctx: ForwardContext) -> None:
        experts: Int[Tensor, "batch slot"] = value.experts.flatten(1).to(counts.device)
        slots = value.experts.shape[-1]
        for group in range(len(masks)):
            counts[group].scatter_add_(1, experts, masks[group].repeat_interleave(slots, dim=1))

    return count


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokenizer's special tokens; none without a tokenizer."""
    return [] if tokenizer is None else [int(token) for token in tokenizer.all_special_ids]
