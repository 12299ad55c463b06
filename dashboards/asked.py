"""What a steer is asked for; kept beside its result, so that the page knows when the result is stale."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dashboards import models
from dashboards.parts import Part


@dataclass(frozen=True)
class Asked:
    """Everything a result depends on."""

    base: str
    tuned: str
    parts: tuple[Part, ...]
    strength: float
    side: str
    prompts: tuple[str, ...]
    max_new_tokens: int
    device: str = "auto"
    strengths: tuple[float, ...] = ()
    """For a sweep; ``strength`` is then not used."""

    @property
    def has_strength(self) -> bool:
        """Whether the recipe can be turned up and down; experts are off or on."""
        return all(part.has_strength for part in self.parts)

    def label(self) -> str:
        """The recipe in a few words."""
        return " + ".join(part.label() for part in self.parts) or "nothing"

    def provenance(self) -> dict[str, Any]:
        """For an export."""
        return {**asdict(self), "recipe": self.label()}

    def python(self) -> str:
        """The same without the app."""
        base, tuned = models.places(self.base, self.tuned)
        made = " + ".join(part.python() for part in self.parts) or "iv.Recipe()"
        lines = ["import interventions as iv", "from workbench.models.pair import load_pair"]
        if "Result." in made:
            lines.append("from workbench.results import Result")
        lines += ["", f"pair = load_pair({base!r}, {tuned!r}, device={self.device!r})"]
        scaled = f"({made}) * {self.strength!r}" if self.has_strength and not self.strengths else made
        lines += [f"recipe = {scaled}", f"prompts = {list(self.prompts)!r}"]
        if self.strengths:
            call = f"prompts, {list(self.strengths)!r}, max_new_tokens={self.max_new_tokens}"
            lines.append(f"texts = iv.steered_texts(pair.{self.side}, recipe, {call})  # [prompt][strength]")
        else:
            lines += [
                f"with recipe.applied(pair.{self.side}):",
                f"    texts = pair.{self.side}.generate(prompts, max_new_tokens={self.max_new_tokens})",
            ]
        return "\n".join(lines) + "\n"


def lines(text: str) -> tuple[str, ...]:
    """One prompt per line that is not empty."""
    return tuple(line for line in text.splitlines() if line.strip())
