"""The parts of a recipe that is built in the app: each is a value, makes its interventions, and says their Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dashboards.state import known_runs, verified
from interventions.line_or_file import is_line, recipe_name
from workbench import runs
from workbench.errors import UserError

if TYPE_CHECKING:
    from interventions.recipe import Recipe
    from workbench.models.pair import ModelPair

MODES = ("replace", "drop", "drop_renorm")
LAYERS, ADAPTER = "LayerScale", "AdapterScale"


class Part(Protocol):
    """One part; equal parts make equal recipes."""

    def label(self) -> str:
        """A few words for people."""

    def python(self) -> str:
        """An expression for the part as a recipe; ``pair``, ``iv`` and ``Result`` are at hand."""

    def made(self, pair: ModelPair) -> Recipe:
        """The part as a recipe. Raises :class:`UserError` for what does not fit."""

    @property
    def has_strength(self) -> bool:
        """Whether any strength makes sense, or only all or nothing."""


@dataclass(frozen=True)
class Saved:
    """A recipe file, or a line of the workspace's book."""

    path: str
    kinds: tuple[str, ...] = ()
    """The interventions in it, as its header says."""

    def label(self) -> str:
        return recipe_name(self.path) + (f" ({', '.join(dict.fromkeys(self.kinds))})" if self.kinds else "")

    def python(self) -> str:
        bound = ".with_models_of(pair.models.values())" if any(kind.startswith("Logit") for kind in self.kinds) else ""
        return f"iv.load_recipe({self.path!r}){bound}"

    def made(self, pair: ModelPair) -> Recipe:
        import interventions as iv

        recipe = iv.load_recipe(self.path if is_line(self.path) else trusted(self.path))
        return recipe.with_models_of(pair.models.values())

    @property
    def has_strength(self) -> bool:
        return "ExpertSwitch" not in self.kinds


@dataclass(frozen=True)
class Experts:
    """Experts off or on."""

    off: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    mode: str = "replace"

    def label(self) -> str:
        said = [f"{name} {', '.join(experts)}" for name, experts in (("off", self.off), ("on", self.on)) if experts]
        return f"experts {' and '.join(said)}"

    def python(self) -> str:
        arguments = [f"{name}={list(experts)!r}" for name, experts in (("off", self.off), ("on", self.on)) if experts]
        return f"iv.Recipe([iv.ExpertSwitch({', '.join(arguments)}, mode={self.switch_mode!r})])"

    def made(self, pair: ModelPair) -> Recipe:  # noqa: ARG002 (checked against the model when applied)
        import interventions as iv

        mode: Any = self.switch_mode
        return iv.Recipe([iv.ExpertSwitch(off=self.off, on=self.on, mode=mode)])

    @property
    def switch_mode(self) -> str:
        """As :class:`interventions.ExpertSwitch` takes it."""
        return self.mode if self.off else "force"

    @property
    def has_strength(self) -> bool:
        return False


@dataclass(frozen=True)
class Heads:
    """Heads scaled: 0 is off, 1 as it is."""

    scales: tuple[tuple[str, float], ...]

    def label(self) -> str:
        return "heads " + ", ".join(f"{head} × {scale:g}" for head, scale in self.scales)

    def python(self) -> str:
        return f"iv.Recipe([iv.HeadScale({dict(self.scales)!r})])"

    def made(self, pair: ModelPair) -> Recipe:  # noqa: ARG002
        import interventions as iv

        return iv.Recipe([iv.HeadScale(dict(self.scales))])

    @property
    def has_strength(self) -> bool:
        return True


@dataclass(frozen=True)
class HeadDirections:
    """Heads moved along the directions of a head probe (inference-time intervention)."""

    path: str
    count: int
    sigmas: float

    def label(self) -> str:
        return f"{self.count} probed heads moved by {self.sigmas:g} σ"

    def python(self) -> str:
        return f"Result.load({self.path!r}).recipe({self.count}, {self.sigmas!r})"

    def made(self, pair: ModelPair) -> Recipe:  # noqa: ARG002
        return _result(self.path, "HeadProbe").recipe(self.count, self.sigmas)

    @property
    def has_strength(self) -> bool:
        return True


@dataclass(frozen=True)
class KnobSet:
    """A knob that was found, set to an intent or a number."""

    path: str
    value: str | float

    def label(self) -> str:
        return f"knob set to {self.value}" if isinstance(self.value, str) else f"knob set to {self.value:g}"

    def python(self) -> str:
        return f"Result.load({self.path!r}).recipe({self.value!r})"

    def made(self, pair: ModelPair) -> Recipe:  # noqa: ARG002
        return _result(self.path, "Knob").recipe(self.value)

    @property
    def has_strength(self) -> bool:
        return True


@dataclass(frozen=True)
class TurnedOff:
    """One way of a comparison of all ways to turn a behaviour off."""

    path: str
    way: str

    def label(self) -> str:
        return self.way

    def python(self) -> str:
        return f"Result.load({self.path!r}).recipe({self.way!r}, pair)[0]"

    def made(self, pair: ModelPair) -> Recipe:
        recipe: Recipe = _result(self.path, "WaysToTurn").recipe(self.way, pair)[0]
        return recipe

    @property
    def has_strength(self) -> bool:
        return self.way != "experts"


@dataclass(frozen=True)
class Weights:
    """Tuning's change of the weights scaled: by layer (a + b · depth), or as an adapter's scale."""

    kind: str
    a: float
    b: float = 0.0

    def label(self) -> str:
        if self.kind == ADAPTER:
            return f"adapter × {self.a:g}"
        return f"weight change × ({self.a:g} + {self.b:g} · depth)"

    def python(self) -> str:
        if self.kind == ADAPTER:
            return f"iv.Recipe([iv.AdapterScale({self.a!r})])"
        return f"iv.Recipe([iv.LayerScale.from_pair(pair, {self.a!r}, {self.b!r})])"

    def made(self, pair: ModelPair) -> Recipe:
        import interventions as iv

        if self.kind == ADAPTER:
            return iv.Recipe([iv.AdapterScale(self.a)])
        return iv.Recipe([iv.LayerScale.from_pair(pair, self.a, self.b)])

    @property
    def has_strength(self) -> bool:
        return True


def built(parts: Sequence[Part], pair: ModelPair) -> Recipe:
    """All parts in order, as one recipe."""
    from interventions import Recipe

    if not parts:
        raise UserError("There is nothing to steer with: choose a recipe, experts, heads, a knob or weights.")
    recipe = Recipe()
    for part in parts:
        recipe = recipe + part.made(pair)
    return recipe


def trusted(path: str) -> Path:
    """The path; a file of a known run must be the one that the run ended with."""
    place = Path(path)
    for folder in known_runs().values():
        if place.is_relative_to(folder):
            return verified(runs.open(folder), place.relative_to(folder).as_posix())
    return place


def labels(text: str) -> tuple[str, ...]:
    """``L1E3, L2E0`` one by one."""
    return tuple(part for part in text.replace(",", " ").split() if part)


def scales(text: str) -> tuple[tuple[str, float], ...]:
    """``L1H2=0, L2H3=0.5`` as pairs. Raises :class:`UserError` for anything else."""
    pairs = []
    for part in labels(text):
        head, sign, number = part.partition("=")
        try:
            pairs.append((head, float(number) if sign else 0.0))
        except ValueError:
            raise UserError(f"{part!r} is no scaled head: write L1H2=0.5, or L1H2 alone to switch it off.") from None
    return tuple(pairs)


def _result(path: str, kind: str) -> Any:
    from workbench.results import Result

    result = Result.load(trusted(path))
    if type(result).__name__ != kind:
        raise UserError(f"{path} holds a {type(result).__name__}, not a {kind}.")
    return result
