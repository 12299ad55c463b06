"""The rows that the store's tests write: mixed dtypes, uneven steps, a group column that starts empty."""

from __future__ import annotations

from typing import Any

import torch

CONFIG = {"sites": ["resid_post", "z"], "seed": 0, "dtype": torch.bfloat16}
SHARD_BYTES = 700
Z, RESID, PICKED = "tuned/blocks.0.attn.hook_z", "base/blocks.1.hook_resid_post", "tuned/blocks.0.mlp.experts"


def steps(count: int = 40) -> list[tuple[dict[str, torch.Tensor], dict[str, list[Any]]]]:
    """Tensors and index of every step, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for step in range(count):
        rows = 1 + step % 5
        tensors = {
            Z: torch.randn((rows, 2, 3), generator=generator, dtype=torch.float32),
            RESID: torch.randn((rows, 8), generator=generator).to(torch.bfloat16),
            PICKED: torch.randint(0, 8, (rows, 2), generator=generator),
            "tuned/odd": torch.randn((rows, 3), generator=generator).to(torch.float16),
        }
        group = [None if step < 20 else f"g{step}"] * rows
        index = {
            "prompt": [step] * rows,
            "position": list(range(rows)),
            "text": ["the"] * rows,
            "group": group,
        }
        made.append((tensors, index))
    return made


def joined(name: str) -> torch.Tensor:
    """All rows of one tensor."""
    return torch.cat([tensors[name] for tensors, _ in steps()])
