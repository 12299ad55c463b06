"""What the pages read from the models of a run when a button is pressed; nothing here draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.models.pair import ModelPair
    from workbench.prompts import Prompt

MOST_TOKENS = 128
"""Of a longer prompt the last tokens are shown: a browser cannot draw more cells well."""


@dataclass(frozen=True)
class Patterns:
    """One head's attention in both models on one prompt, [query, key]."""

    tokens: list[str]
    base: np.ndarray
    tuned: np.ndarray
    left_out: int = 0
    """Tokens at the beginning that are not shown."""

    def frame(self) -> pd.DataFrame:
        """query, key, their tokens, base, tuned; without the keys that causality hides."""
        return pd.DataFrame([
            {"query": q, "key": k, "query token": self.tokens[q], "key token": self.tokens[k],
             "base": float(self.base[q, k]), "tuned": float(self.tuned[q, k])}
            for q in range(len(self.tokens)) for k in range(q + 1)
        ])  # fmt: skip


@dataclass(frozen=True)
class Routes:
    """Where the routers of both models send the tokens of one prompt."""

    tokens: list[str]
    cells: pd.DataFrame
    """model, layer, position, expert, weight."""
    left_out: int = 0


def read_patterns(pair: ModelPair, prompt: Prompt, layer: int, head: int) -> Patterns:
    """The attention pattern of one head. Raises :class:`UserError` for a head that is not there."""
    from workbench.prompts import Prompts
    from workbench.recording.record_pair import record

    model = pair.tuned
    if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
        raise UserError(f"There is no head L{layer}H{head}: the model has {model.n_layers} x {model.n_heads} heads.")
    recording = record(pair, Prompts([prompt]), "pattern", layers=[layer], positions="all")
    tokens = [str(token) for token in recording.index["token"]]
    first = max(0, len(tokens) - MOST_TOKENS)
    both = [recording[role]["pattern", layer][:][first:, head, first:].float().numpy() for role in ("base", "tuned")]
    return Patterns(tokens[first:], both[0], both[1], first)


def read_routes(pair: ModelPair, prompt: Prompt) -> Routes:
    """The experts selected for every token, with their weights. Raises :class:`UserError` for a dense model."""
    from workbench.prompts import Prompts
    from workbench.recording.record_pair import record

    if not pair.tuned.n_experts:
        raise UserError(f"{pair.tuned.name} has no experts: it is a dense model, so no token is routed.")
    recording = record(pair, Prompts([prompt]), "router", positions="all")
    tokens = [str(token) for token in recording.index["token"]]
    first = max(0, len(tokens) - MOST_TOKENS)
    rows: list[dict[str, Any]] = []
    for role in ("base", "tuned"):
        for layer in pair.tuned.moe_layers:
            name = f"blocks.{layer}.mlp.hook_router"
            weights, experts = (recording[role][f"{name}.{part}"][:][first:] for part in ("weights", "experts"))
            rows += [
                {"model": role, "layer": layer, "position": position, "expert": expert, "weight": weight}
                for position, line in enumerate(zip(experts.tolist(), weights.float().tolist(), strict=True))
                for expert, weight in zip(*line, strict=True)
            ]
    return Routes(tokens[first:], pd.DataFrame(rows), first)
