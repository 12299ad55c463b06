"""How the behaviour follows the strength of one candidate, beside random stand-ins at the same strengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import interventions as iv
import probes
import workbench as wb
from tunescope.look.candidates import reply_tokens, rows_to_try
from tunescope.look.cost import DRAWS
from tunescope.look.notes import dose_name
from workbench.errors import UserError, unknown_name
from workbench.progress import Progress
from workbench.prompts import Prompts

if TYPE_CHECKING:
    from tunescope.look.steps import Look
    from workbench.behaviour.dose import DoseResponse

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Times the recipe's own; 0 leaves the model as it is."""


def follow_dose(look: Look, name: str, progress: Progress) -> DoseResponse:
    """Sweep the strength of a kept recipe on the prompts that show the behaviour; the result is put into the look.

    Args:
        look: One whose candidates were tried.
        name: The candidate.

    Returns:
        The share of prompts that still show the behaviour at each strength, the range of random stand-ins where the
        recipe has some, and the perplexity of the other prompts' texts.

    Raises:
        UserError: There is no such recipe, or no prompt shows the behaviour.
    """
    if name not in look.recipes:
        raise unknown_name("recipe", name, look.recipes)
    if look.behaviour is None:
        raise UserError("No behaviour rose on these prompts, so there is none whose dose could be followed.")
    shows, others = rows_to_try(look)
    recipe, model = look.recipes[name], look.pair.tuned
    random = probes.stand_ins(recipe, model, shows, DRAWS, look.seed)
    neutral = Prompts.of([row.shown for row in others], chat=False) if len(others) else None
    curve = wb.dose_response(
        look.pair, shows, iv.dose(recipe), STRENGTHS, metric=look.behaviour,
        controls=[iv.dose(stand_in) for stand_in in random], seed=look.seed, neutral=neutral,
        max_new_tokens=reply_tokens(look.behaviour),
        progress=progress,
    )  # fmt: skip
    look.results[dose_name(name)] = curve
    return curve
