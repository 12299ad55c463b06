"""Options of activation patching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import UserError, unknown_name
from workbench.progress import Progress

METHODS = ("auto", "exact", "attribution", "ig")


@dataclass(frozen=True)
class PatchOptions:
    """Options of :func:`patching`."""

    positions: str | int | Sequence[int] | None = None
    """``all`` at once (default for heads), ``each`` by itself (default for sites), ``last``, or numbers."""
    layers: Any = None
    inputs: Literal["source", "target"] = "source"
    """Across models: ``source`` patches what the source run computed (differences upstream included); ``target`` what
    the source's weights compute from the target's residual stream, so that heads which tuning left alone score 0."""
    method: Literal["auto", "exact", "attribution", "ig"] = "auto"
    """``attribution`` and ``ig`` estimate every cell by gradients and patch only the leading ones and a random sample
    of the others exactly; ``auto`` does so (by attribution) above 128 cells whose exact patches would take more than
    ten times as long as the estimates. The table's column ``confirmed`` says which rows are exact."""
    exact: bool = False
    """Patch every cell exactly, however many there are."""
    answer_tokens: Literal["first", "all"] = "first"
    """``first``: answer and distractor are read at the first token in which they differ. ``all``: the log-probability
    of the whole answer less that of the whole distractor, summed over their tokens in one teacher-forced pass."""
    confirm: float = 0.1
    """The share of cells, the largest estimates first, that are patched exactly."""
    confirm_others: float = 0.02
    """The share of cells, drawn at random among the others, that are patched exactly too: they show how far the
    estimates are to be trusted."""
    ig_steps: int = 5
    """Steps of integrated gradients, for method ig."""
    normalise: bool = True
    """Score as a share of the gap between the two runs; otherwise in units of the metric."""
    only_correct: bool = False
    """Keep only prompts whose metric favours the answer in the clean (tuned) run."""
    together: int | None = None
    """How many of the best heads are patched at once, beside random ones; default a tenth, and none where cells are
    estimated by default; 0 for none."""
    controls: int = 10
    batch_size: int = 16
    max_tokens: int | None = None
    """Tokens that run together as copies of a batch; by default what suits the device."""
    draws: int = 1000
    seed: int = 0
    progress: Progress | None = None


def checked_options(settings: PatchOptions) -> PatchOptions:
    """The options, if they mean something.

    Raises:
        UserError: An unknown method, a share or a number out of range, or two options that contradict each other.
    """
    if settings.method not in METHODS:
        raise unknown_name("method", settings.method, METHODS)
    if settings.answer_tokens not in ("first", "all"):
        raise unknown_name("answer_tokens", settings.answer_tokens, ("first", "all"))
    if settings.exact and settings.method in ("attribution", "ig"):
        raise UserError(f"exact=True patches every cell and method={settings.method!r} estimates them: leave one out.")
    for name in ("confirm", "confirm_others"):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(
                f"{name}={getattr(settings, name)} is a share of the cells: give a number from 0 (none) to 1 (all)."
            )
    if settings.ig_steps < 1:
        raise UserError(f"ig_steps={settings.ig_steps}: integrated gradients need at least one point on the way.")
    return settings
