"""A recording shared out over a team of workers: each runs some of the windows.

The windows are those of a recording in one process and are put together in the same order, so rows and stored bytes are
those of one process wherever a forward pass gives the same bits there (same hardware, same number of threads).
Statistics are merged window by window (Chan et al. 1979): the same for any number of workers, and within 1e-12 of
those of one process, relative to the largest entry.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from workbench.cluster.team import Team
from workbench.models.adapted import AdaptedModel
from workbench.recording.plan import Plan, continued_window
from workbench.recording.sinks import Sink


def continued(crew: Team, writer: AdaptedModel, before: Plan, new_tokens: int) -> list[list[int]]:
    """The token ids of every prompt with its continuation; each window is one worker's."""
    windows, ids = before.windows(), list(before.ids)
    job = crew.job(partial(_continued, before, writer, new_tokens))
    for rows in crew.each(job, windows):
        for prompt, row in rows.items():
            ids[prompt] = row
    return ids


def recorded(crew: Team, job: Any, windows: Sequence[list[int]], part: Sink) -> Iterator[Sink]:
    """``part``, an empty sink, filled with each window in turn."""
    return crew.each(crew.job(partial(_filled, job, part)), windows)


def _continued(before: Plan, writer: AdaptedModel, new_tokens: int, window: list[int]) -> dict[int, list[int]]:
    return continued_window(before, window, writer, new_tokens)


def _filled(job: Any, part: Sink, window: list[int]) -> Sink:
    sink = copy.deepcopy(part)
    job.record(window, sink)
    return sink
