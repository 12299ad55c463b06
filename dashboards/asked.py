"""What a steer is asked for; kept beside its result, so that the page knows when the result is stale."""

from __future__ import annotations

from dataclasses import dataclass

from dashboards import models

FILE, EXPERTS = "A saved recipe", "Experts off"
MODES = ("replace", "drop", "drop_renorm")


@dataclass(frozen=True)
class Asked:
    """Everything a result depends on."""

    base: str
    tuned: str
    how: str
    recipe: str
    mode: str
    strength: float
    side: str
    prompts: str
    max_new_tokens: int

    def python(self) -> str:
        """The same steer without the app."""
        if self.how == EXPERTS:
            made = f"iv.Recipe([iv.ExpertSwitch(off={labels(self.recipe)!r}, mode={self.mode!r})])"
        else:
            made = f"iv.Recipe.load({self.recipe!r})"
        base, tuned = models.places(self.base, self.tuned)
        return (
            "import interventions as iv\nfrom workbench.models.pair import load_pair\n\n"
            f"pair = load_pair({base!r}, {tuned!r})\nrecipe = {made} * {self.strength!r}\n"
            f"with recipe.applied(pair.{self.side}):\n"
            f"    texts = pair.{self.side}.generate({lines(self.prompts)!r}, max_new_tokens={self.max_new_tokens})\n"
        )


def labels(text: str) -> list[str]:
    """``L1E3, L2E0`` as a list."""
    return [part for part in text.replace(",", " ").split() if part]


def lines(text: str) -> list[str]:
    """One prompt per line that is not empty."""
    return [line for line in text.splitlines() if line.strip()]
