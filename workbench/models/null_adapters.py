"""Null adapters: a pair's adapter replaced in memory by one that says nothing, of the same norm in every module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from workbench.errors import NotSupported, UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.models.adapter_layers import acting_adapters, adapter_layers
from workbench.models.pair import ModelPair
from workbench.models.weight_changes import Factors, bias_changes, factors_by_module
from workbench.typing import Float, Tensor

Null = Literal["random", "shuffled"]
KINDS: tuple[Null, ...] = ("random", "shuffled")


class _Factors(NamedTuple):
    """A module's own factors, and copies of what they held."""

    down: Tensor
    up: Tensor
    before: tuple[Tensor, Tensor]


def check_nullable(pair: ModelPair) -> list[str]:
    """The modules of a pair's adapter, where all of it is one plain LoRA.

    Raises:
        UserError: The pair has no adapter on shared weights.
        NotSupported: The adapter is no plain LoRA, or trains whole modules or biases beside it.
    """
    if pair.adapter is None or not pair.one_copy:
        raise UserError("Null adapters need a pair of a base and a PEFT adapter on it; this one has two whole models.")
    model = pair.adapter
    for layer in adapter_layers(model):
        if hasattr(layer, "modules_to_save"):
            raise NotSupported("This adapter trains whole modules too (modules_to_save), which no null stands in for.")
        if len(acting_adapters(layer)) > 1:
            raise NotSupported("Several adapters are active at once; make one of them active before nulls are made.")
    if bias_changes(model):
        raise NotSupported("This adapter changes biases too, which no null stands in for.")
    plain = factors_by_module(model)
    for name, lora in plain.items():
        if lora is None:
            raise NotSupported(f"The adapter is no plain LoRA at {name}; nulls are made of plain LoRAs alone.")
    return list(plain)


@contextmanager
def null_adapter(pair: ModelPair, seed: int, kind: Null = "random") -> Iterator[ModelPair]:
    """The pair with a null adapter, until the context is left; then the adapter is back bit for bit.

    Args:
        pair: A base and a plain LoRA on it.
        seed: Of the draw; another seed, another null.
        kind: ``random``: factors of independent normal numbers. ``shuffled``: each factor's own numbers in random
            places. Both are scaled so that every module's change has the Frobenius norm of the adapter's.

    Yields:
        The same pair; its tuned side has the identity of the null meanwhile.

    Raises:
        UserError: The pair has no adapter.
        NotSupported: The adapter is no plain LoRA.
    """
    if kind not in KINDS:
        raise unknown_name("kind of null", kind, KINDS)
    check_nullable(pair)
    held = [_held(lora) for lora in factors_by_module(pair.adapter).values()]
    tuned, draw = pair.tuned, torch.Generator().manual_seed(seed)
    identity = (tuned._identity, tuned._identify)
    try:
        tuned._identity, tuned._identify = None, None
        for held_factors in held:
            _replace(held_factors, draw, kind)
        yield pair
    finally:
        with torch.no_grad():
            for held_factors in held:
                held_factors.down.copy_(held_factors.before[0])
                held_factors.up.copy_(held_factors.before[1])
        tuned._identity, tuned._identify = identity


@dataclass(frozen=True, eq=False)
class NullRecipe:
    """A null adapter as what is done to a pair's tuned model while it is measured, in whichever process measures it."""

    pair: ModelPair
    seed: int

    def applied(self, _model: AdaptedModel) -> AbstractContextManager[ModelPair]:
        """As :func:`null_adapter`; the model is the pair's tuned one."""
        return null_adapter(self.pair, self.seed)


def _held(lora: Factors | None) -> _Factors:
    assert lora is not None
    return _Factors(lora.A, lora.B, (lora.A.detach().clone(), lora.B.detach().clone()))


@torch.no_grad()
def _replace(held: _Factors, draw: torch.Generator, kind: Null) -> None:
    """Factors that say nothing, whose product is as long as before; of a product of 0 it stays 0."""
    made = [_drawn(factor, draw, kind) for factor in held.before]
    length, wanted = _length(made[0], made[1]), _length(held.before[0], held.before[1])
    scale = wanted / length if length > 0 else torch.zeros(())
    held.down.copy_(made[0])
    held.up.copy_(made[1] * scale)


def _drawn(factor: Tensor, draw: torch.Generator, kind: Null) -> Tensor:
    if kind == "shuffled":
        order = torch.randperm(factor.numel(), generator=draw)
        return factor.float().cpu().flatten()[order].reshape(factor.shape)
    return torch.randn(factor.shape, generator=draw)


def _length(down: Float[Tensor, "rank in"], up: Float[Tensor, "out rank"]) -> Float[Tensor, ""]:
    """The Frobenius norm of ``up @ down``, without forming it."""
    down, up = down.double().cpu(), up.double().cpu()
    return ((up.mT @ up) * (down @ down.mT)).sum().clamp_min(0).sqrt()
