"""Arithmetic on the logits of three models, in at least single precision and safe where a logit is -inf."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from interventions.strength import working
from workbench.typing import Bool, Float, Tensor

GRID = tuple(step / 10 for step in range(21))
"""The amounts that :func:`matched_amount` chooses from."""


def shifted(
    own: Float[Tensor, "*place vocab"],
    tuned: Float[Tensor, "*place smaller"],
    base: Float[Tensor, "*place small"],
    amount: float | Tensor,
) -> Float[Tensor, "*place vocab"]:
    """``own + amount * (tuned - base)`` over the words all three have; other columns of ``own`` stay.

    Where only ``tuned`` rules a word out (-inf), it is ruled out; where ``base`` does, its logit stays, since nothing
    can be subtracted. With amount 1 and ``own`` equal to ``base`` the result is ``tuned`` to the bit.
    """
    width = min(logits.shape[-1] for logits in (own, tuned, base))
    exact = working(own.dtype)
    o, t, b = (logits[..., :width].to(own.device, exact) for logits in (own, tuned, base))
    amount = torch.as_tensor(amount, device=o.device, dtype=exact)
    finite = torch.isfinite(t) & torch.isfinite(b)
    new = o + amount * torch.where(finite, t - b, 0.0)
    new = torch.where((amount == 1) & (o == b) & finite, t, new)
    new = new.masked_fill((t == -torch.inf) & torch.isfinite(b) & (amount > 0), -torch.inf)
    return torch.cat([new.to(own.dtype), own[..., width:]], dim=-1)


def mixed(
    current: Float[Tensor, "*place vocab"],
    own: Float[Tensor, "*place vocab"],
    voices: Sequence[Tensor],
    own_weight: float,
    weights: Sequence[float],
    amount: float | Tensor,
) -> Float[Tensor, "*place vocab"]:
    """``current + amount * ((own_weight - 1) * own + sum of weight * voice)`` over the words that all have.

    ``own`` are the running model's logits before any change, ``current`` those so far. A word that a voice of positive
    weight rules out (-inf) is ruled out; one that a voice of negative weight rules out is not moved by that voice.
    """
    width = min(logits.shape[-1] for logits in (own, *voices))
    exact = working(own.dtype)
    c, o, *rest = (logits[..., :width].to(current.device, exact) for logits in (current, own, *voices))
    amount = torch.as_tensor(amount, device=c.device, dtype=exact)
    total = torch.where(o.isfinite(), o * own_weight, 0.0) if own_weight else torch.zeros_like(o)
    out = torch.zeros_like(o, dtype=torch.bool)
    for voice, weight in zip(rest, weights, strict=True):
        if weight:
            total = total + torch.where(voice.isfinite(), voice * weight, 0.0)
            out |= (voice == -torch.inf) & (weight > 0)
    new = torch.where((amount == 1) & (c == o), total, c + amount * (total - torch.where(o.isfinite(), o, 0.0)))
    new = new.masked_fill((out & (amount > 0)) | (c == -torch.inf), -torch.inf)
    return torch.cat([new.to(current.dtype), current[..., width:]], dim=-1)


def matched_amounts(
    own: Float[Tensor, "*place vocab"], experts: Sequence[Tensor], base: Tensor, sweeps: int = 2
) -> Float[Tensor, "*place expert"]:
    """For each token one amount of :data:`GRID` per expert, which move ``own`` as far as tuning moved ``base``.

    Dynamic Logits Fusion for several experts: the sum over experts of
    (KL(fused || own) - KL(expert || base))^2 is made small, one amount after the other, ``sweeps`` times over.
    """
    width = min(logits.shape[-1] for logits in (own, base, *experts))
    exact = working(own.dtype)
    o, b = (logits[..., :width].to(own.device, exact).log_softmax(-1) for logits in (own, base))
    tuned = [expert[..., :width].to(own.device, exact).log_softmax(-1) for expert in experts]
    changes = [torch.where(logits.isfinite() & b.isfinite(), logits - b, 0.0) for logits in tuned]
    goals = [_divergence(logits, b) for logits in tuned]
    grid = torch.tensor(GRID, device=own.device, dtype=exact)
    amounts = [torch.full_like(goals[0], 1.0 / len(experts)) for _ in experts]
    for _ in range(1 if len(experts) == 1 else sweeps):
        for place, change in enumerate(changes):
            others = o + sum(
                a[..., None] * c for n, (a, c) in enumerate(zip(amounts, changes, strict=True)) if n != place
            )
            missed = []
            for step in GRID:
                moved = _divergence((others + step * change).log_softmax(-1), o)
                missed.append(sum((moved - goal).square() for goal in goals))
            amounts[place] = grid[torch.stack(missed).argmin(0)]  # type: ignore[arg-type]
    return torch.stack(amounts, dim=-1)


def matched_amount(
    own: Float[Tensor, "*place vocab"], tuned: Float[Tensor, "*place smaller"], base: Float[Tensor, "*place small"]
) -> Float[Tensor, "*place"]:
    """For each token the amount of :data:`GRID` that moves ``own`` as far as tuning moved ``base``, by KL divergence.

    The rule of Dynamic Logits Fusion: KL(shifted own || own) as near as possible to KL(tuned || base).
    """
    width = min(logits.shape[-1] for logits in (own, tuned, base))
    exact = working(own.dtype)
    o, t, b = (logits[..., :width].to(own.device, exact).log_softmax(-1) for logits in (own, tuned, base))
    finite = torch.isfinite(t) & torch.isfinite(b)
    change = torch.where(finite, t - b, 0.0)
    goal = _divergence(t, b)
    missed = [(_divergence((o + amount * change).log_softmax(-1), o) - goal).square() for amount in GRID]
    return torch.tensor(GRID, device=o.device, dtype=exact)[torch.stack(missed).argmin(0)]


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities; words that either rules out do not count."""
    both = torch.isfinite(p) & torch.isfinite(q)
    return torch.where(both, p.exp() * (p - q), 0.0).sum(-1)


def without(
    logits: Float[Tensor, "*place vocab"], ruled_out: Bool[Tensor, "*place smaller"], amount: float | Tensor
) -> Float[Tensor, "*place vocab"]:
    """``logits`` with -inf where ``ruled_out``, unless ``amount`` is 0 there; columns beyond it stay."""
    width = min(ruled_out.shape[-1], logits.shape[-1])
    acts = torch.as_tensor(amount, device=logits.device) != 0
    cut = torch.where(ruled_out[..., :width] & acts, -torch.inf, logits[..., :width])
    return torch.cat([cut, logits[..., width:]], dim=-1)


def implausible(tuned: Float[Tensor, "*place vocab"], share: float) -> Bool[Tensor, "*place vocab"]:
    """Where a word has less than ``share`` of the probability of the likeliest one (CGE's cut, p_t >= a max p_t)."""
    exact = tuned.to(working(tuned.dtype))
    return exact < exact.amax(-1, keepdim=True) + math.log(share)


def beyond(logits: Float[Tensor, "*place vocab"], top_p: float) -> Bool[Tensor, "*place vocab"]:
    """Where a word is not among the fewest that hold ``top_p`` of the probability."""
    ordered, order = logits.to(working(logits.dtype)).softmax(-1).sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return torch.zeros_like(outside).scatter(-1, order, outside)
