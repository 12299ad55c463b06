"""What every intervention is: a frozen value that can be checked, applied, scaled, compared and written to a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import import_module
from inspect import isabstract
from typing import Any, ClassVar, TypeVar

from interventions.claims import Claim
from interventions.gate import Gate
from interventions.packing import content_hash, pack, shown, unpack
from interventions.scope import Change, Scope, blend
from interventions.strength import Number, Strength, as_strength, multiplied, trains
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import PositionSpec, Selection, Where, where
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.method_index import index
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

_Same = TypeVar("_Same", bound="Intervention")
_AtSite = TypeVar("_AtSite", bound="SiteIntervention")
_KINDS: dict[str, type[Intervention]] = {}
"""Every class by the name that a recipe file knows it by; see :func:`kind_of`."""


def kind_of(cls: type[Intervention]) -> str:
    """``Offset`` for the interventions of this package, ``module:Class`` for everybody else's."""
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if ours else f"{cls.__module__}:{cls.__qualname__}"


class Intervention(ABC):
    """One change of a model's computation. Subclasses are frozen dataclasses with ``eq=False, repr=False``.

    Equality and hash are those of the content: kind, settings and the bytes of the tensors.
    """

    scopes: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that hold positions."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _KINDS[kind_of(cls)] = cls

    @property
    def kind(self) -> str:
        """The name that a recipe file knows this by: ``Offset``, or of your own class ``module:Class``."""
        return kind_of(type(self))

    @abstractmethod
    def validate(self, model: AdaptedModel) -> None:
        """Raise :class:`UserError` when this cannot be applied to ``model``. Touches nothing."""

    @abstractmethod
    def entered(self, model: AdaptedModel) -> AbstractContextManager[Any]:
        """A context in which ``model`` computes with this intervention; everything comes back on leaving."""

    @abstractmethod
    def scaled(self: _Same, factor: Number) -> _Same:
        """The same with ``factor`` times the strength; 0 leaves the model as it is."""

    def stand_ins(self: _Same, model: AdaptedModel, draws: int, seed: int) -> list[_Same] | None:  # noqa: ARG002
        """``draws`` random ones that differ from this in what was chosen and in nothing else; None: there are none."""
        return None

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(settings as plain JSON values, tensors they refer to by name)."""
        return pack({field.name: getattr(self, field.name) for field in fields(self)}, self.scopes)  # type: ignore[arg-type]

    @classmethod
    def from_tensors(cls: type[_Same], settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> _Same:
        """The inverse of :meth:`to_tensors`. Raises :class:`UserError` for a setting this kind does not have."""
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        for name in settings:
            if name not in known:
                raise unknown_name(f"setting of {cls.__name__}", name, known)
        needed = {field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING}  # type: ignore[arg-type]
        if missing := sorted(needed - set(settings)):
            raise UserError(f"{cls.__name__} lacks its setting {missing[0]!r}: the recipe is incomplete.")
        return cls(**unpack(settings, tensors, cls.scopes))

    @property
    def content(self) -> str:
        """Sha256 in hex of kind, settings and tensors."""
        settings, tensors = self.to_tensors()
        return content_hash({"kind": self.kind, **settings}, tensors)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)

    def __repr__(self) -> str:
        settings = ", ".join(
            f"{field.name}={shown(getattr(self, field.name))}"
            for field in fields(self)  # type: ignore[arg-type]
            if field.default is MISSING or shown(getattr(self, field.name)) != shown(field.default)
        )
        return f"{self.kind}({settings})"


@dataclass(frozen=True, eq=False, repr=False)
class SiteIntervention(Intervention):
    """An intervention on activations: hooks at sites, at chosen positions, with a strength.

    ``strength`` 1 is the full effect and 0 none (bit for bit). A tensor or list [row] gives every prompt of the
    batch its own. ``positions`` is the engine's language (:mod:`workbench.engine.positions`). ``when``: a
    :class:`interventions.Gate`, outside which it does not act; without one it always does.
    """

    strength: Strength = field(default=1.0, kw_only=True)
    positions: PositionSpec | Where = field(default="all", kw_only=True)
    when: Gate | None = field(default=None, kw_only=True)

    scopes: ClassVar[tuple[str, ...]] = ("positions",)

    def __post_init__(self) -> None:
        where(self.positions)
        if not (self.when is None or isinstance(self.when, Gate)):
            raise UserError(
                f"when={shown(self.when)} is no gate: give interventions.Gate(layer, direction, threshold)."
            )
        self._set("strength", as_strength(self.strength))

    @abstractmethod
    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """What happens at which site, before positions are taken into account."""

    def validate_beside(self, others: Sequence[Intervention], model: AdaptedModel) -> None:
        """Raise :class:`UserError` when this cannot be applied together with ``others`` (itself among them)."""

    def claims(self, model: AdaptedModel) -> list[Claim]:  # noqa: ARG002
        """What this decides alone, so that a recipe can refuse a second intervention that decides otherwise."""
        return []

    @property
    def neutral(self) -> bool:
        """Whether this leaves the model exactly as it is; never so for what is being trained."""
        return not isinstance(self.strength, Tensor) and self.strength == 0

    def hooks(self, model: AdaptedModel) -> list[SiteHook]:
        """The hooks that do it, in order; none when :attr:`neutral`."""
        if self.neutral:
            return []
        hooks = [self._hook(site, change) for site, change in self.changes(model)]
        return hooks if self.when is None else [self.when.hook(model), *hooks]

    def check_gate(self, model: AdaptedModel) -> None:
        """Raise :class:`UserError` when the gate does not fit ``model``, or reads too late for what it opens."""
        if self.when is not None:
            self.when.validate(model)
            self.when.check_before([site for site, _ in self.changes(model)], model)

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Without ``when`` where there is no gate, so that such a recipe has the content that it always had."""
        settings, tensors = super().to_tensors()
        if self.when is None:
            del settings["when"]
        return settings, tensors

    def entered(self, model: AdaptedModel) -> AbstractContextManager[Any]:
        """A context in which the hooks are on ``model``."""
        return model.hooked(self.hooks(model))

    def scaled(self: _AtSite, factor: Number) -> _AtSite:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=multiplied(self.strength, factor))

    def limited_to(self: _AtSite, rows: tuple[bool, ...]) -> _AtSite:
        """The same, touching only the prompts whose entry is True."""
        scope = where(self.positions)
        if scope.rows is not None:
            raise UserError(f"{self.kind} already names its rows: give per_row interventions without rows.")
        return replace(self, positions=replace(scope, rows=rows))

    def _hook(self, site: Site, change: Change) -> SiteHook:
        scope = self.scope()

        def edit(value: Any, ctx: ForwardContext) -> Any:
            selection = scope(ctx)
            if selection.nothing:
                return None
            new = change(value, ctx)
            return new if new is None or selection.everything else self._blended(selection, new, value)

        return SiteHook(site, edit, edit=True)

    def scope(self) -> Scope:
        """Where this acts: its positions, behind its gate."""
        return Scope(self.positions, self.when)

    def _blended(self, selection: Selection, new: Any, old: Any) -> Any:
        """``new`` where the positions were chosen, ``old`` elsewhere."""
        return blend(selection, new, old)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _trains(self, *tensors: Tensor | None) -> bool:
        return trains(self.strength, *tensors)


def kind_named(name: str) -> type[Intervention]:
    """The class of interventions that a recipe file calls ``name``; nothing is imported for a name that is not ours.

    A name of this package always is this package's class, whatever others define.

    Raises:
        UserError: There is no such kind, or it is somebody's own and its class was not imported in this process.
    """
    package = import_module("interventions")
    if name in package.__all__ or name in index().functions("interventions"):
        kind = getattr(package, name)
        if isinstance(kind, type) and issubclass(kind, Intervention) and not isabstract(kind):
            return kind
    elif ":" in name:
        if name in _KINDS and not isabstract(_KINDS[name]):
            return _KINDS[name]
        module, _, cls = name.partition(":")
        raise UserError(
            f"The recipe holds an intervention of your own, {cls} of {module}: import that module (define the class) "
            "before loading the recipe."
        )
    usable = [kind for kind, cls in _KINDS.items() if not isabstract(cls)]
    raise unknown_name("kind of intervention", name, usable)
