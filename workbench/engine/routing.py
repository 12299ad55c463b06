"""Routers of mixtures of experts: what they return, and their selection recomputed from the logits.

A router module returns (logits [token, expert], weights [token, k], experts [token, k]); the block then ignores
the logits, so an edit of the logits changes nothing. Routing is changed by returning other weights and experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from workbench.typing import Bool, Float, Int, Tensor


class Routing(NamedTuple):
    """What a router decided, per token."""

    logits: Tensor
    """[batch, pos, expert]: raw scores before softmax or sigmoid."""
    weights: Tensor
    """[batch, pos, k]: how much each selected expert's output counts."""
    experts: Tensor
    """[batch, pos, k]: the selected experts; their order has no meaning."""


def core_router(router: nn.Module) -> Any:
    """The router itself, below PEFT wrappers."""
    core: Any = router
    while hasattr(type(core), "get_base_layer") and core.get_base_layer() is not core:
        core = core.get_base_layer()
    return core


def find_router(mlp: nn.Module | None) -> nn.Module | None:
    """The router of a mixture-of-experts block: ``gate`` or ``router`` beside fused ``experts``; None when dense."""
    if not isinstance(getattr(mlp, "experts", None), nn.Module):
        return None
    for name in ("gate", "router"):
        router = getattr(mlp, name, None)
        if isinstance(router, nn.Module) and hasattr(core_router(router), "top_k"):
            return router
    return None


def normalises(router: nn.Module) -> bool:
    """Whether the router rescales the selected weights to a fixed sum."""
    core = core_router(router)
    name = type(core).__name__
    return name.startswith(("Mixtral", "GptOss")) or bool(getattr(core, "norm_topk_prob", False))


def reroute(
    router: nn.Module,
    logits: Float[Tensor, "token expert"],
    excluded: Bool[Tensor, "... expert"] | None = None,
    preferred: Float[Tensor, "... expert"] | None = None,
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """Recompute (weights, experts) from the logits, as the router's own class does.

    ``excluded`` experts cannot be selected; ``preferred`` is added to the selection score only. The weights come
    from the untouched scores, so a token that did not use an excluded expert keeps its routing bit for bit.
    Covers softmax routers (with and without renormalisation), top-k-then-softmax (GPT-OSS) and sigmoid routers
    with a correction bias and group-limited selection (DeepSeek-V3).
    """
    core = core_router(router)
    if corrected(core):
        return _sigmoid_routing(core, logits, excluded, preferred)
    scores = _softmax_scores(core, logits)
    experts = _select_on(scores, excluded, preferred).topk(core.top_k, dim=-1)[1]
    return _softmax_weights(core, scores.gather(1, experts), logits.dtype), experts


def corrected(core: Any) -> bool:
    """Whether sigmoid scores are corrected by a bias, and experts selected from the best groups (DeepSeek-V3)."""
    return hasattr(core, "e_score_correction_bias")


def gate_scores(router: nn.Module, logits: Float[Tensor, "token expert"]) -> Float[Tensor, "token expert"]:
    """What weights are made from: softmax probabilities, sigmoids (DeepSeek-V3), or the logits (GPT-OSS)."""
    core = core_router(router)
    return logits.sigmoid() if corrected(core) else _softmax_scores(core, logits)


def weigh(router: nn.Module, scores: Float[Tensor, "token k"], dtype: torch.dtype) -> Float[Tensor, "token k"]:
    """The weights of selected experts from their gate scores, with the family's own normalisation.

    ``dtype``: that of the logits, which most families return their weights in.
    """
    core = core_router(router)
    if not corrected(core):
        return _softmax_weights(core, scores, dtype)
    if core.norm_topk_prob:
        scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
    return scores * core.routed_scaling_factor


def _softmax_scores(core: Any, logits: Tensor) -> Tensor:
    return logits if type(core).__name__.startswith("GptOss") else torch.softmax(logits.float(), dim=-1)


def _softmax_weights(core: Any, weights: Tensor, dtype: torch.dtype) -> Tensor:
    if type(core).__name__.startswith("GptOss"):
        return torch.softmax(weights, dim=1, dtype=weights.dtype)
    if normalises(core):
        weights = weights / weights.sum(-1, keepdim=True)
    return weights if type(core).__name__.startswith("Mixtral") else weights.to(dtype)


def _select_on(scores: Tensor, excluded: Tensor | None, preferred: Tensor | None) -> Tensor:
    if preferred is not None:
        scores = scores + preferred
    return scores if excluded is None else scores.masked_fill(excluded, float("-inf"))


def _sigmoid_routing(
    core: Any, logits: Tensor, excluded: Tensor | None, preferred: Tensor | None
) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3: sigmoid scores; the bias, the groups and the edits act on the selection alone.

    A group's score is the sum of its two best experts that are left: excluding one expert of a two-expert group
    lowers the group's score but does not remove the group.
    """
    scores = gate_scores(core, logits)
    choice = scores + core.e_score_correction_bias
    if preferred is not None:
        choice = choice + preferred
    by_group = _select_on(choice, excluded, None).view(-1, core.num_group, core.num_experts // core.num_group)
    best_two = by_group.topk(2, dim=-1)[0]
    if excluded is None:
        group_scores = best_two.sum(dim=-1)
    else:
        best_two = best_two.masked_fill(best_two == float("-inf"), 0.0)
        group_scores = _groups_that_can_serve(best_two.sum(dim=-1), excluded, core)
    groups = group_scores.topk(core.topk_group, dim=-1, sorted=False)[1]
    in_kept = torch.zeros_like(group_scores).scatter_(1, groups, 1).unsqueeze(-1).expand_as(by_group)
    eligible = choice.masked_fill(~in_kept.reshape(choice.shape).bool(), float("-inf"))
    experts = _select_on(eligible, excluded, None).topk(core.top_k, dim=-1, sorted=False)[1]
    return weigh(core, scores.gather(1, experts), logits.dtype), experts


def _groups_that_can_serve(group_scores: Tensor, excluded: Tensor, core: Any) -> Tensor:
    """Put groups that could not fill their share of the k slots last, so the kept groups always hold k experts."""
    left = (~excluded).expand(group_scores.shape[0], -1).view(-1, core.num_group, core.num_experts // core.num_group)
    needed = -(-core.top_k // core.topk_group)
    return group_scores - 1e6 * (left.sum(-1) < needed)
