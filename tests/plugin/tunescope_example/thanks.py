"""A behaviour that somebody else wrote: whether a text says thank you."""

from __future__ import annotations

from workbench.methods import method
from workbench.prompts.row import Prompt


@method("thanks", group="texts", question="Does the text say thank you?", kind="behaviour")
def thanks(response: str, prompt: Prompt) -> bool:
    """Share of texts that say thank you."""
    return "thank" in response.casefold()
