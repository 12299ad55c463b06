"""Decoding with keys and values that follow the gradient of an attribute (PPLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from probes.replay import frozen
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Int, Tensor

Pasts = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Push:
    """How keys and values are moved before each token."""

    size: float = 0.02
    steps: int = 3
    gamma: float = 1.5
    """The gradient of each tensor is divided by its norm to this power."""
    kl: float = 0.01
    fusion: float = 0.9
    """The pushed distribution to this power, times the plain one to the rest."""


class PushedDecoding:
    """One text at a time, greedily. ``bag`` [word]: token ids whose summed probability is raised."""

    def __init__(self, model: AdaptedModel, bag: Int[Tensor, " word"], push: Push) -> None:
        self.model, self.bag, self.push = model, bag.to(model.device), push
        self.mass: list[list[float]] = []
        """Per token the bag's probability before each step and after the last."""
        self.forward_passes = self.backward_passes = 0

    def text(self, ids: list[int], new: int, ends: set[int]) -> list[int]:
        """New token ids.

        Raises:
            NotSupported: The model's cache does not hold plain keys and values of every token.
        """
        with self.model.active(), frozen(self.model.hf):
            past: Pasts | None = self._read(ids[:-1]) if len(ids) > 1 else None
            last, tokens = ids[-1], []
            for _ in range(new):
                plain, grown = self._next(last, past)
                pushed, grown = (plain, grown) if past is None else self._pushed(last, past, plain, grown)
                last = int(self._fused(pushed, plain).argmax())
                tokens.append(last)
                past = grown
                if last in ends:
                    break
        return tokens

    def _fused(self, pushed: Tensor, plain: Tensor) -> Tensor:
        fusion = self.push.fusion
        return fusion * pushed.log_softmax(-1) + (1 - fusion) * plain.log_softmax(-1)

    def _read(self, ids: list[int]) -> Pasts:
        self.forward_passes += 1
        with torch.no_grad():
            out = self.model.inner(torch.tensor([ids], device=self.model.device), use_cache=True)
        return _pairs(out.past_key_values)

    def _next(self, token: int, past: Pasts | None, *, grad: bool = False) -> tuple[Float[Tensor, " vocab"], Pasts]:
        """Logits behind ``token`` in float32, and keys and values with it."""
        self.forward_passes += 1
        ids = torch.tensor([[token]], device=self.model.device)
        with torch.set_grad_enabled(grad):
            out = self.model.inner(ids, past_key_values=_cache(past), use_cache=True)
        return out.logits[0, -1].float(), _pairs(out.past_key_values)

    def _pushed(self, token: int, past: Pasts, plain: Tensor, grown: Pasts) -> tuple[Tensor, Pasts]:
        """What comes after the steps, in logits and in the cache."""
        if self.push.steps == 0 or self.push.size == 0:
            return plain, grown
        moved = [tuple(one.clone() for one in layer) for layer in past]
        reference = plain.detach().log_softmax(-1)
        masses = []
        for _ in range(self.push.steps):
            leaves = [tuple(one.detach().requires_grad_() for one in layer) for layer in moved]
            logits, _ = self._next(token, leaves, grad=True)  # type: ignore[arg-type]
            log_p = logits.log_softmax(-1)
            bag = log_p[self.bag].logsumexp(-1)
            masses.append(float(bag.detach().exp()))
            loss = -bag + self.push.kl * (log_p.exp() * (log_p - reference)).sum()
            flat = [one for layer in leaves for one in layer]
            gradients = iter(torch.autograd.grad(loss, flat))
            self.backward_passes += 1
            moved = [tuple(self._step(one.detach(), next(gradients)) for one in layer) for layer in leaves]
        logits, grown = self._next(token, moved)  # type: ignore[arg-type]
        masses.append(float(logits.softmax(-1)[self.bag].sum()))
        self.mass.append(masses)
        return logits, grown

    def _step(self, value: Tensor, gradient: Tensor) -> Tensor:
        norm = gradient.float().norm() + 1e-15
        return value - (self.push.size * gradient / norm**self.push.gamma).to(value.dtype)


def _cache(past: Pasts | None) -> Any:
    from transformers import DynamicCache

    made = DynamicCache()
    for layer, (keys, values) in enumerate(past or ()):
        made.update(keys, values, layer)
    return made


def _pairs(cache: Any) -> Pasts:
    """Keys and values of every layer."""
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(cache, "layers", [])]
    lengths = {None if keys is None else keys.shape[-2] for keys, _ in pairs}
    if not pairs or None in lengths or len(lengths) != 1:
        raise NotSupported(
            "This model's cache does not hold keys and values of every token in every layer, which PPLM moves: use a "
            "model with ordinary attention."
        )
    return pairs  # type: ignore[return-value]
