"""Activations of another run, of the same or of the other model, aligned with the positions of the running one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from interventions.checks import Layer, resolved
from interventions.strength import for_rows
from workbench.cards import card
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded
from workbench.typing import Bool, Float, Int, Tensor

Align = Literal["last", "equal"]
_ALIGNMENTS = ("last", "equal")


@dataclass(frozen=True, repr=False)
class Run:
    """What a model computed at one site, every row counted from its first real token."""

    values: Tensor
    """[row, pos, ...], 0 beyond a row's length."""
    lengths: Int[Tensor, " row"]
    """Real tokens of each row."""

    def __repr__(self) -> str:
        return f"Run({len(self.lengths)} rows, values {list(self.values.shape)} {self.values.dtype})"

    def _repr_html_(self) -> str:
        facts = {"rows": len(self.lengths), "values": list(self.values.shape), "dtype": self.values.dtype}
        return card("Activations of a run", facts)


def record_run(model: AdaptedModel, prompts: Any, site: str, layer: Layer, *, write_of: list[int] | None = None) -> Run:
    """Run ``prompts`` (text, chats, ids [row, pos] or Encoded) through ``model`` and keep one site.

    ``write_of``: instead of z itself, what these heads write to the residual stream,
    [row, pos, len(write_of), d_model].
    """
    batch = prompts if isinstance(prompts, Encoded | Tensor) else model.encode(prompts)
    place = Site(Site.parse(site).kind, resolved(model, layer))
    recorded: list[tuple[Tensor, Tensor]] = []

    def keep(value: Tensor, ctx: ForwardContext) -> None:
        recorded.append((value.detach().clone(), ctx.real))

    with model.hooked([SiteHook(place, keep)], stop=True), torch.no_grad():
        model.forward(batch, logits=None)
        value, real = recorded[0]
        if write_of is not None:
            value = head_writes(model, place, value, write_of)
    rows = [row[there] for row, there in zip(value, real, strict=True)]
    return Run(pad_sequence(rows, batch_first=True), real.sum(-1))


def head_writes(
    model: AdaptedModel, z_site: Site, z: Float[Tensor, "batch pos head d_head"], heads: list[int]
) -> Float[Tensor, "batch pos chosen d_model"]:
    """W_O z of each head by itself, without the bias, through whatever adapter the projection carries.

    Raises :class:`NotSupported` where a norm stands between the projection and the residual stream.
    """
    family = model.hub.family
    if family.attn_out != family.output:
        raise NotSupported(
            f"{model.inner.config.model_type} normalises the attention output before it is added, so a single "
            'head writes nothing of its own to the residual stream: patch what="z" instead.'
        )
    projection = model.hub.module(z_site).forward  # not the module itself: its hooks are for the real pass
    alone = torch.stack([_only(z, head) for head in heads], dim=2).flatten(-2)
    return projection(alone) - projection(torch.zeros_like(alone[:1, :1, :1]))


def _only(z: Tensor, head: int) -> Tensor:
    keep = torch.zeros(z.shape[-2], 1, dtype=z.dtype, device=z.device)
    keep[head] = 1
    return z * keep


def check_alignment(align: str) -> None:
    """Raise :class:`UserError` for an unknown alignment."""
    if align not in _ALIGNMENTS:
        raise unknown_name("alignment", align, _ALIGNMENTS)


class Aligned:
    """Recorded values for every new position of a running model.

    ``values``: [...] the same everywhere, [row, ...] one per prompt, or [row, pos, ...] with ``lengths`` [row].
    ``axes``: how many axes one position has. ``align="last"`` puts the last recorded position on the last prompt
    token and counts back; ``"equal"`` puts the first on the first.
    """

    def __init__(self, values: Tensor, lengths: Tensor | None, axes: int, align: str) -> None:
        self._values, self._align = values, align
        self._leading = values.ndim - axes
        if not 0 <= self._leading <= 2:
            raise UserError(
                f"The recorded activation has shape {list(values.shape)}: give [...], [row, ...] or [row, pos, ...] "
                f"with {axes} axes per position."
            )
        full = torch.full((len(values),), values.shape[1]) if self._leading == 2 else torch.ones(0)
        self._lengths = full if lengths is None else lengths

    def __call__(self, value: Tensor, ctx: ForwardContext) -> tuple[Tensor, Bool[Tensor, "batch pos"] | None]:
        """(recorded values, broadcastable to ``value``'s positions; where there are any, None: everywhere)."""
        recorded = self._values.to(value.device)
        if self._leading == 0:
            return recorded, None
        recorded = for_rows(recorded, ctx, "recorded rows")
        if self._leading == 1:
            return recorded.unsqueeze(1), None
        lengths = for_rows(self._lengths, ctx, "recorded lengths")[:, None]
        places = ctx.index if self._align == "equal" else ctx.index - ctx.prompt_lengths[:, None] + lengths
        present = (places >= 0) & (places < lengths) & ctx.real
        rows = torch.arange(ctx.batch, device=value.device)[:, None]
        return recorded[rows, places.clamp(0, recorded.shape[1] - 1)], present
