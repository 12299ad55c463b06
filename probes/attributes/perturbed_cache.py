"""Decoding with keys and values that follow the gradient of an attribute (PPLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from probes.replay import frozen
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts.encode import pad_left
from workbench.typing import Bool, Float, Int, Tensor

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
    """Greedy texts, several at once. ``bag`` [word]: token ids whose summed probability is raised."""

    def __init__(self, model: AdaptedModel, bag: Int[Tensor, " word"], push: Push) -> None:
        self.model, self.bag, self.push = model, bag.to(model.device), push
        self.mass: list[list[float]] = []
        """Per token of each text the bag's probability before each step and after the last."""
        self.forward_passes = self.backward_passes = 0

    def text(self, ids: list[int], new: int, ends: set[int]) -> list[int]:
        """New token ids of one text."""
        return self.texts([ids], new, ends)[0]

    def texts(self, ids: Sequence[Sequence[int]], new: int, ends: set[int]) -> list[list[int]]:
        """New token ids of each text; every row is pushed along its own gradient, whatever the others are.

        Raises:
            NotSupported: The model's cache does not hold plain keys and values of every token.
        """
        tokens: list[list[int]] = [[] for _ in ids]
        with self.model.active(), frozen(self.model.hf):
            mask, past = self._read(ids)
            last = torch.tensor([row[-1] for row in ids], device=self.model.device)
            going = torch.ones(len(ids), dtype=torch.bool)
            for _ in range(new):
                mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
                step = _Step(last, mask)
                plain, grown = self._next(step, past)
                pushed, past = (plain, grown) if past is None else self._pushed(step, past, plain, grown, going)
                last = self._fused(pushed, plain).argmax(-1)
                for row in going.nonzero()[:, 0].tolist():
                    tokens[row].append(int(last[row]))
                    going[row] = int(last[row]) not in ends
                if not going.any():
                    break
        return tokens

    def _fused(self, pushed: Tensor, plain: Tensor) -> Tensor:
        fusion = self.push.fusion
        return fusion * pushed.log_softmax(-1) + (1 - fusion) * plain.log_softmax(-1)

    def _read(self, ids: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "row column"], Pasts | None]:
        """The mask and the cache of all tokens but the last of each row; None where there are no others."""
        before = [list(row[:-1]) for row in ids]
        if not any(before):
            return torch.ones(len(ids), 0, dtype=torch.long, device=self.model.device), None
        batch = pad_left(before, pad_id(self.model.tokenizer)).to(self.model.device)
        self.forward_passes += 1
        with torch.no_grad():
            out = self.model.inner.base_model(batch.input_ids, use_cache=True, **_padding(batch.attention_mask))
        return batch.attention_mask, _pairs(out.past_key_values)

    def _next(self, step: _Step, past: Pasts | None, *, grad: bool = False) -> tuple[Float[Tensor, "row vocab"], Pasts]:
        """Logits behind each row's last token in float32, and keys and values with it."""
        self.forward_passes += 1
        with torch.set_grad_enabled(grad):
            out = self.model.inner(
                step.tokens[:, None],
                past_key_values=copied_cache(past),
                use_cache=True,
                **_padding(step.mask, last=True),
            )
        return out.logits[:, -1].float(), _pairs(out.past_key_values)

    def _pushed(
        self, step: _Step, past: Pasts, plain: Tensor, grown: Pasts, going: Bool[Tensor, " row"]
    ) -> tuple[Tensor, Pasts]:
        """What comes after the steps, in logits and in the cache."""
        if self.push.steps == 0 or self.push.size == 0:
            return plain, grown
        moved = [tuple(tensor.float() for tensor in layer) for layer in past]
        reference = plain.detach().log_softmax(-1)
        masses = []
        for _ in range(self.push.steps):
            leaves = [_stored(layer, like) for layer, like in zip(moved, past, strict=True)]
            logits, _ = self._next(step, leaves, grad=True)
            log_p = logits.log_softmax(-1)
            bag = log_p[:, self.bag].logsumexp(-1)
            masses.append(bag.detach().exp())
            loss = -bag + self.push.kl * (log_p.exp() * (log_p - reference)).sum(-1)
            flat = [tensor for layer in leaves for tensor in layer]
            gradients = iter(torch.autograd.grad(loss.sum(), flat))
            self.backward_passes += 1
            moved = [tuple(self._step(tensor, next(gradients)) for tensor in layer) for layer in moved]
        with torch.no_grad():
            logits, grown = self._next(step, [_stored(layer, like) for layer, like in zip(moved, past, strict=True)])
        masses.append(logits.softmax(-1)[:, self.bag].sum(-1))
        self.mass += torch.stack(masses, dim=1)[going.to(logits.device)].tolist()
        return logits, grown

    def _step(self, value: Float[Tensor, "row head column d_head"], gradient: Tensor) -> Tensor:
        gradient = gradient.float()
        norm = gradient.flatten(1).norm(dim=1)[:, None, None, None] + 1e-15
        return value - self.push.size * gradient / norm**self.push.gamma


class _Step(NamedTuple):
    """The last token of each row, and which columns are real, that token's among them."""

    tokens: Int[Tensor, " row"]
    mask: Int[Tensor, "row column"]


def _padding(mask: Int[Tensor, "row column"], *, last: bool = False) -> dict[str, Tensor]:
    """What tells the model of padding; nothing where there is none. ``last``: for the last column alone."""
    if bool(mask.all()):
        return {}
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"attention_mask": mask, "position_ids": places[:, -1:] if last else places}


def _stored(layer: tuple[Tensor, ...], like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values in the model's dtype, as leaves: steps add up in float32."""
    keys, values = (tensor.to(kind.dtype).detach().requires_grad_() for tensor, kind in zip(layer, like, strict=True))
    return keys, values


def copied_cache(past: Pasts | None) -> Any:
    """A cache of its own that holds these keys and values."""
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
