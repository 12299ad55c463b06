"""Interventions in plain YAML, one schema per kind; names and defaults are those of :mod:`interventions`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator

from tunescope.experiments.derived_interventions import AnyDerived, GateSpec, Inline, Layer, Positions, derived_spec
from tunescope.experiments.strict import Strict, refusal
from tunescope.experiments.tensor_source import TensorSource


class FoundRef(Strict):
    """Something that a probe found: in an earlier step, or in the result that a run keeps (a .safetensors file)."""

    takes: ClassVar[str] = ""
    """What it takes from a result, as the registry says what methods give; empty for any probe's."""

    from_step: str | None = Field(default=None, alias="from")
    file: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> FoundRef:
        if (self.from_step is None) == (self.file is None):
            raise refusal("give from (an earlier step), or file (a result that a run keeps).")
        return self


class ResultRef(FoundRef):
    """A result, whatever it is of."""


class FirstOf(FoundRef):
    """The first cells of a table: experts of an experts map, heads of patching."""

    takes: ClassVar[str] = "ranked experts"

    first: int = Field(default=1, ge=1)


class KnobRef(FoundRef):
    """A knob that was found, set to an intent's value or to a number."""

    takes: ClassVar[str] = "knob"

    to: str | float


class ConceptsRef(FoundRef):
    """Directions that a concepts step found, by number."""

    takes: ClassVar[str] = "concepts"

    directions: list[int] = Field(default=[0])
    to: Literal["zero", "mean"] = "zero"


class ProbedHeads(FoundRef):
    """The ``first`` heads of a head probe, each along its direction, in standard deviations of its rows."""

    takes: ClassVar[str] = "probed heads"

    first: int = Field(default=48, ge=1)
    direction: Literal["mass_mean", "weight"] = "mass_mean"


class SkillRef(FoundRef):
    """The region that a skills step found."""

    takes: ClassVar[str] = "region"


def _labels(value: Any) -> str:
    return "labels" if isinstance(value, list | tuple) else "map"


Labels = Annotated[Annotated[list[str], Tag("labels")] | Annotated[FirstOf, Tag("map")], Discriminator(_labels)]
"""Labels such as L1E4, or the first of a map."""


def _heads(value: Any) -> str:
    if isinstance(value, Strict):
        return "step"
    return "step" if isinstance(value, dict) and not {"from", "file"}.isdisjoint(value) else "heads"


class AtSites(Inline):
    """One intervention on activations."""

    positions: Positions = "all"
    when: GateSpec | None = None


class HeadOffsetSpec(AtSites):
    """A vector per head, added to z; ``vectors`` maps labels to vectors, or names a head probe."""

    kind: Literal["HeadOffset"] = "HeadOffset"
    vectors: Annotated[
        Annotated[dict[str, TensorSource], Tag("heads")] | Annotated[ProbedHeads, Tag("step")], Discriminator(_heads)
    ]


class ScaledHeads(FirstOf):
    """The first heads of a patching or head-probe step, all with one scale."""

    takes: ClassVar[str] = "ranked heads"

    scale: float = 0.0


class HeadScaleSpec(AtSites):
    """Heads scaled at z; ``scales`` maps labels to numbers, or names a step."""

    kind: Literal["HeadScale"] = "HeadScale"
    scales: Annotated[
        Annotated[dict[str, float | list[float]], Tag("heads")] | Annotated[ScaledHeads, Tag("step")],
        Discriminator(_heads),
    ]


class ExpertSwitchSpec(AtSites):
    """Experts off or on."""

    kind: Literal["ExpertSwitch"] = "ExpertSwitch"
    off: Labels = Field(default=[])
    on: Labels = Field(default=[])
    mode: Literal["replace", "drop", "drop_renorm", "force"] = "replace"
    weight: Literal["own", "max"] | float = "own"


class SubspaceKnobSpec(AtSites):
    """The coordinate in a subspace, set or added to."""

    kind: Literal["SubspaceKnob"] = "SubspaceKnob"
    knob: KnobRef | None = None
    layer: Layer | None = None
    direction: TensorSource | None = None
    value: float | list[float] | None = None
    mode: Literal["set", "add"] = "set"
    site: str = "resid_post"
    positions: Positions = "last+generated"

    @model_validator(mode="after")
    def _one_way(self) -> SubspaceKnobSpec:
        written = {"layer", "direction", "value"} & self.model_fields_set
        if (self.knob is None) == (len(written) < 3) or (self.knob is not None and written):
            raise refusal("give knob (from, to), or layer, direction and value.")
        return self


class ConceptAblationSpec(AtSites):
    """Directions taken out of the residual stream."""

    kind: Literal["ConceptAblation"] = "ConceptAblation"
    concepts: ConceptsRef | None = None
    layer: Layer | None = None
    directions: TensorSource | None = None
    mean: TensorSource | None = None
    site: str = "resid_post"

    @model_validator(mode="after")
    def _one_way(self) -> ConceptAblationSpec:
        written = {"layer", "directions"} & self.model_fields_set
        if (self.concepts is None) == (len(written) < 2) or (self.concepts is not None and written):
            raise refusal("give concepts (from, directions), or layer and directions.")
        return self


class LayerScaleSpec(Inline):
    """The difference of the models, scaled by depth; for the tuned side of an adapter, else for the base."""

    kind: Literal["LayerScale"] = "LayerScale"
    a: float
    b: float


class GraftSpec(Inline):
    """The tuned weights of a region, put into the base."""

    kind: Literal["Graft"] = "Graft"
    skill: SkillRef


class SavedSpec(Inline):
    """All interventions of a saved recipe, or of a line of the book's names, in their order."""

    kind: Literal["Recipe"] = "Recipe"
    file: str | None = None
    line: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SavedSpec:
        if (self.file is None) == (self.line is None):
            raise refusal("give file (a saved recipe) or line (of the book's names).")
        return self


WRITTEN: dict[str, type[Inline]] = {
    "HeadOffset": HeadOffsetSpec,
    "HeadScale": HeadScaleSpec,
    "ExpertSwitch": ExpertSwitchSpec,
    "SubspaceKnob": SubspaceKnobSpec,
    "ConceptAblation": ConceptAblationSpec,
    "LayerScale": LayerScaleSpec,
    "Graft": GraftSpec,
    "Recipe": SavedSpec,
}
"""Kinds that can name what a step found, or are more than one intervention; all others are made from their class."""


def _kind(values: Any) -> str:
    kind = values.get("kind") if isinstance(values, Mapping) else getattr(values, "kind", None)
    return kind if kind in WRITTEN else "derived"


AnyInline = Annotated[
    Annotated[HeadOffsetSpec, Tag("HeadOffset")]
    | Annotated[HeadScaleSpec, Tag("HeadScale")]
    | Annotated[ExpertSwitchSpec, Tag("ExpertSwitch")]
    | Annotated[SubspaceKnobSpec, Tag("SubspaceKnob")]
    | Annotated[ConceptAblationSpec, Tag("ConceptAblation")]
    | Annotated[LayerScaleSpec, Tag("LayerScale")]
    | Annotated[GraftSpec, Tag("Graft")]
    | Annotated[SavedSpec, Tag("Recipe")]
    | Annotated[AnyDerived, Tag("derived")],
    Discriminator(_kind),
]


def spec_of(kind: str) -> type[Inline]:
    """The schema of the intervention called ``kind``. Raises :class:`UserError` for a kind that no file can say."""
    return WRITTEN[kind] if kind in WRITTEN else derived_spec(kind)


class RecipeSpec(Strict):
    """Interventions in order, a saved recipe, or one line. A list alone stands for ``interventions``, a text alone for
    ``line``."""

    file: str | None = None
    line: str | None = None
    """Such as ``0.5*formal - 0.2*verbose @generated``, with the names of the book: the folder ``recipes`` beside the
    experiment's file."""
    interventions: list[AnyInline] | None = None
    strength: float = 1.0
    """A factor for all of them."""

    @model_serializer(mode="wrap")
    def _tags_first(self, write: Callable[[Any], dict[str, Any]]) -> Any:
        written = write(self)
        return written["interventions"] if set(written) == {"interventions"} else written

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"line": value}
        return {"interventions": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_source(self) -> RecipeSpec:
        if sum(source is not None for source in (self.file, self.interventions, self.line)) != 1:
            raise refusal("give a list of interventions, or file (a saved recipe), or line (of the book's names).")
        return self
