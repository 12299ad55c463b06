"""A recording as a task of the desk."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dashboards import jobs
from dashboards.job_journal import Order
from dashboards.pair_form import RecordRequest

if TYPE_CHECKING:
    from workbench.prompts import Prompts

PAGE = "record"


def begin(request: RecordRequest, prompts: Prompts) -> None:
    """Put it into the queue; one of the same name goes on from its last complete part."""
    order = Order("recording", {**asdict(request), "prompts": [row.as_dict() for row in prompts]})
    jobs.desk().begin(
        f"Recording {request.name}", lambda progress: (request.record(prompts, progress), request.name), page=PAGE,
        order=order,
    )  # fmt: skip


def begin_again(options: dict[str, Any]) -> None:
    """As it was ordered. Raises :class:`UserError` for a recording that cannot be."""
    from workbench.prompts import Prompts

    rows = Prompts.of(options["prompts"])
    request = RecordRequest(**{name: value for name, value in options.items() if name != "prompts"})
    request = RecordRequest(**{**asdict(request), "sites": tuple(request.sites)})
    request.check()
    begin(request, rows)
