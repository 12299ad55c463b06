"""Tasks that a killed server left, begun again from what they were asked to do."""

from __future__ import annotations

from dashboards import recording, run_front
from dashboards.job_journal import Order
from dashboards.steps import exports, running
from workbench.errors import UserError

_BEGIN = {
    "look": running.begin_again,
    "dose": running.begin_dose_again,
    "method": run_front.begin_again,
    "recording": recording.begin_again,
    "export": exports.begin_again,
}
"""Kind of an order -> what puts its task into the queue."""


def begin_again(order: Order) -> None:
    """Put a task into the queue as it was ordered; what is complete of it is kept where its run keeps it.

    Args:
        order: What the journal holds.

    Raises:
        UserError: The order is damaged, or what it names is gone.
    """
    begin = _BEGIN.get(order.kind)
    if begin is None:
        raise UserError("it is of a kind that this version does not know; start it again on its page.")
    try:
        begin(order.options)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("what was asked is damaged; start it again on its page.") from error
