"""What both chapters look at on the prompts they keep: tokens, layers, heads and directions."""

from __future__ import annotations

from typing import Any

import probes
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.recording.record_pair import record

SHOWN = 32
"""Prompts that the run keeps."""
NEW_TOKENS = 4
"""Of every answer."""
DIRECTIONS = 6
"""That are looked for."""


def shown_rows(rows: list[dict[str, Any]], column: str, count: int = SHOWN) -> list[dict[str, Any]]:
    """The first ``count`` rows, the values of ``column`` taking turns, so that every kind is among the first."""
    kinds = list(dict.fromkeys(row[column] for row in rows))
    queues = [[row for row in rows if row[column] == kind] for kind in kinds]
    longest = max(map(len, queues), default=0)
    turns = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return turns[:count]


def looked(
    pair: Any, rows: list[dict[str, Any]], labels: list[str], layer: int, *, seed: int, progress: Progress
) -> dict[str, Any]:
    """Results by name: which tokens tuning changed, what each layer would say, which heads tell the ``labels`` apart,
    and the directions in which ``layer`` moved."""
    prompts = Prompts.of(rows)
    z = record(pair, prompts, "z", positions="last", progress=progress)
    residual = record(pair, prompts, "resid_post", layers=[layer], positions="all", progress=progress)
    return {
        "tokens": probes.token_shift(pair, prompts, max_new_tokens=NEW_TOKENS, seed=seed, progress=progress),
        "lens": probes.logit_lens(pair, prompts, shown=len(prompts), seed=seed, progress=progress),
        "head-probe": probes.head_probe(z, labels, seed=seed, progress=progress),
        "concepts": probes.concept_directions(
            residual, "pca-uncentred", layer=layer, k=DIRECTIONS, model=pair.tuned, seed=seed
        ),
    }
