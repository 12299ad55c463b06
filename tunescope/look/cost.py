"""How much a look reads, and what that costs, in words; nothing here imports model code."""

from __future__ import annotations

ANSWER_TOKENS = 16
"""Of the answers that are compared first; a phrase may stand at their end."""
WHERE_PROMPTS = 12
"""Prompts that the localizing passes read."""
TURN_PROMPTS = 12
"""Prompts that show the behaviour, and as many others, on which each candidate is tried."""
DRAWS = 10
"""Random stand-ins of a candidate."""


def cost_of(n_prompts: int, *, exact: bool = False) -> str:
    """What the four steps compute for so many prompts; ``exact``: with every head patched.

    Examples:
        >>> cost_of(60).partition(";")[0]
        'both models write 16 tokens to each of 60 prompts'
    """
    return (
        f"both models write {ANSWER_TOKENS} tokens to each of {n_prompts} prompts; activations, layers and heads are "
        f"read on {min(n_prompts, WHERE_PROMPTS)} of them, {'head by head' if exact else 'with gradients'}; every way "
        f"to turn the behaviour is tried on up to {2 * TURN_PROMPTS}, beside {DRAWS} random stand-ins"
    )
