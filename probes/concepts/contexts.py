"""Where a direction is strongest and weakest, with the words around it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.typing import Float, Int, Tensor

AROUND = 12
"""Tokens shown before and after."""


def extreme_contexts(
    values: Float[Tensor, "row k"], index: pd.DataFrame, count: int, places: Int[np.ndarray, " row"] | None = None
) -> pd.DataFrame:
    """The ``count`` rows of highest and of lowest value of every direction, one per prompt.

    ``places`` [row]: which line of ``index`` each row is, where values are of some of them alone.
    Columns: direction, end (highest, lowest), value, prompt, position, context (the token between » and «).
    """
    rows = []
    prompts, positions = index["prompt"].to_numpy(), index["position"].to_numpy()
    tokens = index["token"].astype(str).tolist()
    members = {prompt: np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)}
    table = values.numpy()
    lines = np.arange(len(table)) if places is None else places
    joint = "" if any(token[:1].isspace() for token in tokens) else " "  # word-level tokens carry no spaces
    for direction in range(table.shape[1]):
        for end, order in (("highest", np.argsort(-table[:, direction])), ("lowest", np.argsort(table[:, direction]))):
            seen: set[int] = set()
            for place in order.tolist():
                row = int(lines[place])
                if len(seen) == count:
                    break
                if (prompt := int(prompts[row])) in seen:
                    continue
                seen.add(prompt)
                rows.append(
                    {
                        "direction": direction,
                        "end": end,
                        "value": float(table[place, direction]),
                        "prompt": prompt,
                        "position": int(positions[row]),
                        "context": joint.join(_context(members[prompt], row, positions, tokens)),
                    }
                )
    return pd.DataFrame(rows, columns=["direction", "end", "value", "prompt", "position", "context"])


def _context(members: np.ndarray, row: int, positions: np.ndarray, tokens: list[str]) -> list[str]:
    """The recorded tokens around ``row`` in its prompt."""
    near = members[np.abs(positions[members] - positions[row]) <= AROUND]
    near = near[np.argsort(positions[near])]
    return [f"»{tokens[place]}«" if place == row else tokens[place] for place in near]
