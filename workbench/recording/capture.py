"""The rows that one batch of prompts leaves at each site, in the order (prompt, position)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import PositionSpec, Selection, Where, select
from workbench.engine.routing import Routing
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded
from workbench.recording.row_memory import RowMemory
from workbench.typing import Bool, Int, Tensor

LOGITS = "logits"


@dataclass
class Captured:
    """One model on one batch: site name -> rows, and where they come from."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    batch_row: Tensor | None = None
    """[row] which prompt of the batch."""
    position: Tensor | None = None
    """[row] position in the prompt, from its first real token."""
    sums: list[Tensor] = field(default_factory=list)
    """Of every tensor of floating point: a NaN or an infinite value among the rows spoils one."""


@dataclass(frozen=True)
class _Kept:
    """Which rows of a forward pass are kept; found once, the same for every site."""

    batch_row: Tensor
    column: Tensor
    everything: bool
    same_column: int | None = None
    """The one column kept of every prompt, where that is all: the last, in a batch padded on the left."""

    def of(self, value: Tensor) -> Tensor:
        """[row, ...] of ``value`` [batch, pos, ...]; a view where whole columns are kept."""
        if self.everything:
            return value.flatten(0, 1)
        if self.same_column is not None:
            return value[:, self.same_column]
        return value[self.batch_row.to(value.device), self.column.to(value.device)]

    @property
    def is_view(self) -> bool:
        """Whether :meth:`of` copies nothing."""
        return self.everything or self.same_column is not None


@dataclass(frozen=True)
class Capture:
    """What to keep of a forward pass."""

    sites: tuple[Site, ...]
    positions: PositionSpec | Where
    dtype: torch.dtype | None
    """Floating rows are stored in this dtype; None keeps the model's."""
    width: int
    """Longest prompt of the whole recording: the width of stored attention rows."""
    logits: bool = False
    memory: RowMemory = field(default_factory=RowMemory, init=False, compare=False, repr=False)

    def run(self, model: AdaptedModel, batch: Encoded, prompt_lengths: Int[Tensor, " row"] | None) -> Captured:
        """One forward pass of ``model``; it ends after the last site unless logits are kept."""
        taken = Captured()
        hooks = [SiteHook(site, self._reader(site, taken)) for site in self.sites]
        if not self.sites:
            hooks = [SiteHook(Site("resid_pre", 0), self._locator(taken))]
        with model.hooked(hooks, stop=not self.logits, prompt_lengths=prompt_lengths):
            out = model.forward(batch, logits="all" if self.logits else None)
        if out is not None and self.logits:
            assert taken.batch_row is not None and taken.position is not None
            self._store(taken, LOGITS, out, _Kept(taken.batch_row, _columns(batch, taken), everything=False))
        return taken

    def _reader(self, site: Site, taken: Captured) -> Any:
        name, pattern = site.name, site.kind == "pattern"

        def read(value: Any, ctx: ForwardContext) -> None:
            located = self._locate(ctx, taken)
            if isinstance(value, Routing):
                self._store(taken, name, value.logits, located)
                self._store(taken, f"{name}.weights", value.weights, located)
                self._store(taken, f"{name}.experts", value.experts, located)
            else:
                self._store(taken, name, _aligned_pattern(value, ctx, self.width) if pattern else value, located)

        return read

    def _locator(self, taken: Captured) -> Any:
        def locate(_value: Any, ctx: ForwardContext) -> None:
            self._locate(ctx, taken)

        return locate

    def _locate(self, ctx: ForwardContext, taken: Captured) -> _Kept:
        if (located := ctx.scratch.get("capture")) is None:
            located = ctx.scratch["capture"] = _kept(select(self.positions, ctx), ctx)
            taken.batch_row = located.batch_row.cpu()
            taken.position = ctx.index[located.batch_row, located.column].cpu()
        return located

    def _store(self, taken: Captured, name: str, value: Tensor, located: _Kept) -> None:
        """Keep a copy: an alias would hold the whole activation, and change with what is written into it later."""
        rows = located.of(value)
        dtype = self.dtype if self.dtype is not None and rows.is_floating_point() else rows.dtype
        if located.is_view and rows.device.type == "cpu":
            rows = self.memory.copy(rows, dtype)
        else:
            rows = rows.to(dtype, copy=located.is_view)
        taken.rows[name] = rows
        if rows.is_floating_point():
            taken.sums.append(_sum(rows))  # now, while the rows are in the processor's cache


def _kept(selection: Selection, ctx: ForwardContext) -> _Kept:
    if selection.everything and not ctx.padded:
        cells = torch.arange(ctx.batch * ctx.length, device=ctx.device)
        return _Kept(cells // ctx.length, cells % ctx.length, everything=True)
    mask = selection.mask if selection.mask is not None else ctx.real & (not selection.nothing)
    row, column = mask.nonzero(as_tuple=True)
    if len(row) == mask.numel():
        return _Kept(row, column, everything=True)
    return _Kept(row, column, everything=False, same_column=_same_column(row, column, ctx.batch))


def _same_column(row: Tensor, column: Tensor, batch: int) -> int | None:
    """The column where it is the same one of every prompt."""
    if len(row) != batch or row.tolist() != list(range(batch)):
        return None
    columns = set(column.tolist())
    return columns.pop() if len(columns) == 1 else None


def _columns(batch: Encoded, taken: Captured) -> Tensor:
    """Columns of the padded batch that the kept rows sit in."""
    assert taken.batch_row is not None and taken.position is not None
    width = batch.input_ids.shape[1]
    left = width - batch.attention_mask.sum(-1).cpu()
    return taken.position + left[taken.batch_row]


def _aligned_pattern(pattern: Tensor, ctx: ForwardContext, width: int) -> Tensor:
    """[batch, query, head, width]: keys counted from each row's first real token, 0 beyond the last."""
    by_query = pattern.transpose(1, 2)
    keys = by_query.shape[-1]
    left = keys - (ctx.attention_mask.sum(-1) if ctx.padded and ctx.attention_mask is not None else keys)
    left = torch.as_tensor(left, device=pattern.device).expand(by_query.shape[0])
    column = left[:, None] + torch.arange(width, device=pattern.device)
    inside = column < keys
    taken = by_query.gather(-1, column.clamp(max=keys - 1)[:, None, None].expand(*by_query.shape[:3], -1))
    return taken * inside[:, None, None]


def nonfinite_rows(tensors: Mapping[str, Tensor]) -> dict[str, Bool[Tensor, " row"]]:
    """The tensors [row, ...] that hold a NaN or an infinite value, and in which rows."""
    sums = {name: _sum(rows) for name, rows in tensors.items() if rows.is_floating_point()}
    if all_finite(list(sums.values())):
        return {}
    marked = {name: (~torch.isfinite(tensors[name])).flatten(1).any(1).cpu() for name in sums}
    return {name: rows for name, rows in marked.items() if bool(rows.any())}


def all_finite(sums: list[Tensor]) -> bool:
    """Looks at all of them together: on a GPU every look waits for the device."""
    if len({part.device for part in sums}) > 1:
        sums = [part.cpu() for part in sums]
    return not sums or math.isfinite(torch.stack(sums).sum().item())


def _sum(rows: Tensor) -> Tensor:
    """In float32 at least, so that many finite numbers of a narrow dtype do not overflow."""
    return rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))
