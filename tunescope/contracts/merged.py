"""Whether a checkpoint is its base with an adapter merged: PEFT's merge replayed, and compared bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import UserError
from workbench.models.adapters import attach_adapter
from workbench.models.loading import load_model
from workbench.models.sources import Kind, Source, describe
from workbench.typing import Tensor


@dataclass(frozen=True)
class Replay:
    """What the replay found."""

    same: bool
    tensors: int
    """How many were compared."""
    sentence: str


def merged(base: str, adapter: str, tuned: str) -> Replay:
    """Merge ``adapter`` into ``base`` as PEFT does, and compare every tensor with ``tuned``.

    The merge is made in the checkpoint's own dtype and, where that differs, once more in float32 and rounded: both are
    common.

    Raises:
        UserError: A folder is not what its name says, or the adapter belongs to another base.
    """
    source, change, checkpoint = describe(base), describe(adapter), describe(tuned)
    if not change.is_adapter:
        raise UserError(f"merged: {adapter} is no PEFT adapter; give the folder with adapter_config.json.")
    if checkpoint.kind is not Kind.MODEL or source.kind is not Kind.MODEL:
        raise UserError("merged: base and tuned must be whole checkpoints; an unmerged adapter holds itself.")
    held = _tensors(load_model(checkpoint, device="cpu", dtype="auto"))
    dtypes = {tensor.dtype for tensor in held.values() if tensor.is_floating_point()}
    own = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32
    first: Replay | None = None
    for dtype in dict.fromkeys((own, torch.float32)):
        comparison = _compare(_merge(source, change, dtype), held, dtype)
        if comparison.same:
            return comparison
        first = first or comparison
    assert first is not None
    untouched = _compare(_tensors(load_model(source, device="cpu", dtype=own)), held, own)
    more = "; the checkpoint is the base itself: the adapter is not in it" if untouched.same else ""
    return Replay(False, first.tensors, first.sentence + more)


def _merge(source: Source, change: Source, dtype: torch.dtype) -> dict[str, Tensor]:
    model = load_model(source, device="cpu", dtype=dtype)
    return _tensors(attach_adapter(model, change).merge_and_unload())


def _tensors(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _compare(made: dict[str, Tensor], held: dict[str, Tensor], dtype: torch.dtype) -> Replay:
    """The first tensor that differs, in the order of the model."""
    if odd := sorted(made.keys() ^ held.keys()):
        return Replay(False, len(held), f"{odd[0]} is in one of merge and checkpoint alone")
    for name, tensor in held.items():
        other = made[name]
        if other.shape != tensor.shape:
            return Replay(False, len(held), f"{name} has the shape {list(tensor.shape)}, not {list(other.shape)}")
        if not torch.equal(other.to(tensor.dtype), tensor):
            largest = (other.double() - tensor.double()).abs().max().item()
            return Replay(False, len(held), f"{name} is the first tensor that differs, by up to {largest:.3g}")
    return Replay(True, len(held), f"all {len(held)} tensors equal PEFT's merge in {str(dtype).split('.')[-1]}")
