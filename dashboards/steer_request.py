"""What a steer is asked for; kept beside its result, so that the page knows when the result is stale."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dashboards import models
from dashboards.recipe_parts import Part

if TYPE_CHECKING:
    from workbench.prompts import Prompt


@dataclass(frozen=True)
class SteerRequest:
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
    raw: bool = False
    """Texts are read as they are, also where there is a chat template."""
    system: str = ""
    """A system turn in front of every prompt."""
    originals: tuple[tuple[str, str], ...] = ()
    """Of lines that stand for a run's chats, and for its texts of several lines: the line, and the chat's messages or
    the text as JSON."""

    def inputs(self) -> list[str | dict[str, Any]]:
        """The prompts as a person writes them in Python and YAML: texts, and rows where a text would not say it."""
        from workbench.prompts import Prompts

        originals = {line: json.loads(own) for line, own in self.originals}
        read = [originals.get(line, line) for line in self.prompts]
        items = [{"messages": own} if isinstance(own, list) else own for own in read]
        rows = Prompts.of(items, chat=False if self.raw else None, system=self.system.strip() or None)
        return [
            item if row.prompt == item and row.chat is None else row.as_dict()
            for row, item in zip(rows, items, strict=True)
        ]

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
        if "recipe_of(" in made:
            lines.append("from tunescope.experiments import recipe_of")
        dtype = models.quick_dtype(base, self.device)
        loaded = "" if dtype == "auto" else f", dtype={dtype!r}"
        lines += ["", f"pair = load_pair({base!r}, {tuned!r}, device={self.device!r}{loaded})"]
        scaled = f"({made}) * {self.strength!r}" if self.has_strength and not self.strengths else made
        lines += [f"recipe = {scaled}", f"prompts = {self.inputs()!r}"]
        if self.strengths:
            call = f"prompts, {list(self.strengths)!r}, max_new_tokens={self.max_new_tokens}"
            lines.append(f"texts = iv.steered_texts(pair.{self.side}, recipe, {call})  # [prompt][strength]")
        else:
            lines += [
                f"with recipe.applied(pair.{self.side}):",
                f"    texts = pair.{self.side}.generate(prompts, max_new_tokens={self.max_new_tokens})",
            ]
        return "\n".join(lines) + "\n"


def originals_of(rows: Iterable[Prompt], texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Of ``texts`` those that stand for a row which no single line can say: a chat's messages, a text with breaks."""
    known: dict[str, str] = {}
    for row in rows:
        if row.is_chat:
            known[one_line(row.shown)] = json.dumps(row.as_dict()["messages"])
        elif row.prompt is not None and row.prompt != one_line(row.prompt):
            known[one_line(row.prompt)] = json.dumps(row.prompt)
    return tuple((text, known[text]) for text in dict.fromkeys(texts) if text in known)


def one_line(text: str) -> str:
    """``text`` without line breaks, as a line of the prompts' box."""
    return " ".join(text.split())


def lines(text: str) -> tuple[str, ...]:
    """One prompt per line that is not empty."""
    return tuple(line for line in text.splitlines() if line.strip())
