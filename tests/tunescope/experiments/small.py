"""A small experiment of eight cells, and what a run of it leaves on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

SMALL = """
name: killed
pair: {base: llama-base, tuned: llama-tuned, device: cpu}
prompts: {file: p.jsonl}
recipes: {push: [{kind: Offset, layer: 1, vector: {from: rec, layer: 1}}]}
steps:
  rec: {do: record}
  heads: {do: localize heads, metric: prob}
  effect: {do: diff, recipes: [push], metrics: [accuracy, prob]}
sweep: {seed: [0, 1], recipes.push.strength: [0.5, 1, 2, 4]}
"""


def tree(folder: Path) -> dict[str, str]:
    """Path -> sha256 of everything in a run."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
