"""A hook for one row of a batch: it sees that row as a run of its own would show it."""

from __future__ import annotations

from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.typing import Tensor


def for_row(hook: SiteHook, row: int, context: ForwardContext) -> SiteHook:
    """``hook`` for one row of a batch whose new columns are all real; the other rows are left bit for bit."""

    def change(value: Tensor, _ctx: ForwardContext) -> Tensor | None:
        new = hook.fn(value[row : row + 1], context)
        if new is None or len(value) == 1:
            return new
        whole = value.clone()
        whole[row : row + 1] = new
        return whole

    return SiteHook(hook.site, change, edit=hook.edit)
