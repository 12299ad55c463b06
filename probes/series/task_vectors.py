"""The members of a series as updates that add up, read from their files tensor by tensor."""

from __future__ import annotations

from typing import Any

from interventions.recipe import as_adapted
from interventions.weightspace.task_vector import TaskVector
from probes.series.answers import updates_of
from probes.series.members import members_of
from workbench.models.series import ModelSeries, load_series


def task_vectors(base: Any, members: Any) -> dict[str, TaskVector]:
    """Each fine-tune of ``base`` as an update of it, by name; nothing is loaded but the tensor that is asked for.

    Merges of many full models so hold the base and a tensor or two, also while they are written.

    Example:
        >>> vectors = probes.task_vectors(base, ["tune-1", "tune-2", "tune-3"])  # doctest: +SKIP
        >>> iv.uniform_soup(list(vectors.values())).save(base, "soup")  # doctest: +SKIP

    Args:
        base: The loaded model that all are fine-tunes of.
        members: A series (:func:`workbench.load_series`), a Trainer's output folder, or a list of folders and hub ids.

    Raises:
        UserError: No member, or one that is no fine-tune of this base.
    """
    adapted = as_adapted(base)
    series = members if isinstance(members, ModelSeries) else load_series(adapted.hf, members)
    listed = ModelSeries(adapted.hf, series.members, series.notes)
    return updates_of(adapted, members_of(listed, None, (), None, fewest=1))[0]
