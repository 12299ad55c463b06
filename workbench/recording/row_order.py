"""Rows of many batches put into the order of the prompts."""

from __future__ import annotations

import numpy as np
import torch

from workbench.recording.row_memory import empty
from workbench.typing import Int, Tensor


def row_order(prompts: Int[Tensor, " row"], positions: Int[Tensor, " row"]) -> Int[Tensor, " row"] | None:
    """The order by prompt, then position; None when the rows are in it already."""
    of, at = prompts.numpy(), positions.numpy()
    if bool(((of[1:] > of[:-1]) | ((of[1:] == of[:-1]) & (at[1:] > at[:-1]))).all()):
        return None
    return torch.from_numpy(np.lexsort((at, of)))


def in_order(pieces: list[Tensor], order: Int[Tensor, " row"] | None) -> Tensor:
    """Row ``order[i]`` of the joined pieces becomes row i; each row is copied at most once."""
    first = pieces[0]
    if order is None and len(pieces) == 1:
        return first
    shape = torch.Size((sum(map(len, pieces)), *first.shape[1:]))
    joined = empty(shape, first.dtype) if first.device.type == "cpu" else first.new_empty(shape)
    if order is None:
        return torch.cat(pieces, out=joined)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    for piece, rows in zip(pieces, place.split([len(piece) for piece in pieces]), strict=True):
        joined.index_copy_(0, rows.to(joined.device), piece)
    return joined
