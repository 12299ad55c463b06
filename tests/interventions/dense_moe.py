"""Mixtures of experts computed by hand, expert by expert and token by token, under every meaning of off and on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear, silu


def scores_of(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    """Gate scores [token, expert] from the router's own weights."""
    router = router_of(mlp)
    logits = linear(x, router.weight, getattr(router, "bias", None))
    if "Deepseek" in type(router).__name__:
        return logits.sigmoid()
    return logits if "GptOss" in type(router).__name__ else logits.softmax(-1)


def router_of(mlp: Any) -> Any:
    return mlp.gate if hasattr(mlp, "gate") else mlp.router


def choose(mlp: Any, scores: torch.Tensor, off: set[int], on: set[int]) -> list[int]:
    """The experts of one token from its scores [expert]: the best that are left, forced ones first."""
    router = router_of(mlp)
    selection = scores.clone()
    if hasattr(router, "e_score_correction_bias"):
        selection = selection + router.e_score_correction_bias
        size = len(scores) // router.num_group
        for expert in on:
            selection[expert] = 100.0
        groups = []
        for group in range(router.num_group):
            members = [e for e in range(group * size, (group + 1) * size) if e not in off]
            best = sorted((float(selection[e]) for e in members), reverse=True)[:2]
            groups.append((sum(best), members))
        kept = sorted(groups, key=lambda pair: pair[0], reverse=True)[: router.topk_group]
        allowed = [e for _, members in kept for e in members]
    else:
        for expert in on:
            selection[expert] = 1e6
        allowed = [e for e in range(len(scores)) if e not in off]
    return sorted(allowed, key=lambda e: float(selection[e]), reverse=True)[: router.top_k]


def weights_of(mlp: Any, chosen: torch.Tensor) -> torch.Tensor:
    """Weights of one token's chosen experts from their scores [k]."""
    router = router_of(mlp)
    name = type(router).__name__
    if "GptOss" in name:
        return chosen.softmax(-1)
    if "Mixtral" in name or getattr(router, "norm_topk_prob", False):
        chosen = chosen / chosen.sum()
    return chosen * getattr(router, "routed_scaling_factor", 1.0)


def expert_output(mlp: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    """What one expert makes of one token [d_model]."""
    e = mlp.experts
    if "GptOss" in type(e).__name__:
        both = x @ e.gate_up_proj[expert] + e.gate_up_proj_bias[expert]
        gate, up = both[::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
        inner = (up + 1) * gate * torch.sigmoid(gate * 1.702)
        return inner @ e.down_proj[expert] + e.down_proj_bias[expert]
    gate, up = (e.gate_up_proj[expert] @ x).chunk(2)
    return e.down_proj[expert] @ (silu(gate) * up)


def shared(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    """What the shared experts add to all tokens."""
    if hasattr(mlp, "shared_expert"):
        return torch.sigmoid(mlp.shared_expert_gate(x)) * mlp.shared_expert(x)
    return mlp.shared_experts(x) if hasattr(mlp, "shared_experts") else torch.zeros_like(x)


def block(
    mlp: Any,
    x: torch.Tensor,
    off: set[int],
    on: set[int],
    mode: str,
    chosen_at: torch.Tensor,
    score: Any = "own",
) -> torch.Tensor:
    """The whole block on x [token, d_model]; the edit holds for tokens where ``chosen_at`` [token]."""
    scores, out = scores_of(mlp, x), shared(mlp, x)
    rows = []
    for token, own in enumerate(scores):
        edit = bool(chosen_at[token])
        gone, forced = (off if edit else set()), (on if edit else set())
        experts = choose(mlp, own, gone if mode == "replace" else set(), forced)
        values = torch.stack([own[e] for e in experts])
        for place, e in enumerate(experts):
            if e in forced and score != "own":
                values[place] = own.max() if score == "max" else score
        weights = weights_of(mlp, values)
        left = torch.tensor([mode == "replace" or e not in gone for e in experts])
        if mode == "drop_renorm" and left.any():
            weights = weights * left * (weights.sum() / (weights * left).sum())
        rows.append(sum(w * expert_output(mlp, e, x[token]) for w, e in zip(weights * left, experts, strict=True)))
    return out + torch.stack(rows)


@contextmanager
def by_hand(
    layer: Any, off: set[int], on: set[int], mode: str, chosen_at: torch.Tensor, score: Any = "own"
) -> Iterator[None]:
    """Let the mixture of ``layer`` be computed by :func:`block`; ``chosen_at`` [batch, pos]."""

    def hook(mlp: Any, args: Any, output: Any) -> Any:
        x = args[0]
        new = block(mlp, x.flatten(0, 1), off, on, mode, chosen_at.flatten(), score).view_as(x)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = layer.mlp.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
