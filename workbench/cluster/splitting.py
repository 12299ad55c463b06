"""``on_ray``: inside it, whatever Tunescope runs batch by batch on a pair is shared out over workers.

A loop over parts is written once, as :func:`in_parts`; outside of :func:`on_ray` it is a plain loop of this process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.finished_batches import in_turn

if TYPE_CHECKING:
    from workbench.cluster.team import Team
    from workbench.models.adapted import AdaptedModel

Part = TypeVar("Part")
Answer = TypeVar("Answer")
Within = Callable[[], AbstractContextManager[Any]]
_TEAM: ContextVar[Team | None] = ContextVar("team", default=None)


class RunsHereWarning(UserWarning):
    """Work inside ``on_ray`` that the workers could not take, and that this process does alone: slower, not other."""


@contextmanager
def on_ray(subject: Any, workers: int | None = None) -> Iterator[None]:
    """Share out what runs on ``subject`` inside the context over a Ray cluster.

    Recordings, patching (exact and by gradients), null adapters, audits, LESS, behaviour diffs and every other probe
    made of them are split by prompts, cells or nulls. Each worker loads the models once. A worker that dies is started
    again and its parts are done again. Results are those of this process alone, bit for bit where a forward pass gives
    the same bits there (same hardware, as many threads). What the workers cannot take runs here, with a
    :class:`RunsHereWarning`.

    Args:
        subject: A pair, or a model, loaded from folders or hub ids.
        workers: How many processes; default: one per GPU of the cluster, else per CPU.

    Raises:
        UserError: Ray is missing, the models were given loaded or are being intervened on, or there are not so many
            CPUs or GPUs.

    Example:
        ``with wb.on_ray(pair, workers=4): found = probes.patching(pair, prompts)``
    """
    from workbench.cluster.team import team

    with team(subject, workers) as made:
        token = _TEAM.set(made)
        try:
            yield
        finally:
            _TEAM.reset(token)


def shared_out(subject: Any, workers: int | None) -> AbstractContextManager[None]:
    """:func:`on_ray` where a number of workers was chosen; otherwise this process alone."""
    return nullcontext() if workers is None else on_ray(subject, workers)


def in_parts(
    function: Callable[[Part], Answer],
    parts: Sequence[Part],
    take: Callable[[Part, Answer], None],
    within: Within = nullcontext,
    content: Callable[[Part], Any] | None = None,
) -> None:
    """Hand ``take`` every part with what ``function`` makes of it, in the order of the parts.

    Args:
        function: Top-level, or a ``partial`` of one; the models that it holds are the worker's own there.
        parts: Plain data; at least two are needed for anything to be shared out.
        take: Runs in this process.
        within: A context that ``function`` runs in: once around all parts here, around each part in a worker.
        content: What a part is about: its answer is then among the run's :mod:`workbench.finished_batches`.
    """
    crew = _TEAM.get()
    job = None if crew is None or len(parts) < 2 else _job(crew, partial(_inside, within, function))
    compute = partial(map, function) if crew is None or job is None else partial(crew.each, job)
    with within() if job is None else nullcontext():
        answers = compute(parts) if content is None else in_turn(parts, content, compute)
        for part, answer in zip(parts, answers, strict=True):
            take(part, answer)


def split_width() -> int:
    """Over how many processes work is shared out here; 1 outside of ``on_ray``."""
    crew = _TEAM.get()
    return 1 if crew is None else crew.most


def current_team(models: Mapping[str, AdaptedModel]) -> Team | None:
    """The team around this call, if it holds these models as they are now."""
    crew = _TEAM.get()
    return crew if crew is not None and crew.serves(models) else None


def _inside(within: Within, function: Callable[[Part], Answer], part: Part) -> Answer:
    with within():
        return function(part)


def _job(crew: Team, function: Callable[[Any], Any]) -> list[Any] | None:
    from workbench.cluster.shipping import NotShippable

    try:
        return crew.job(function)
    except NotShippable as error:
        warnings.warn(f"Run in this process alone: {error}.", RunsHereWarning, stacklevel=4)
        return None
