"""Recipes of an experiment: from plain YAML, with tensors from files and from what earlier steps found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

import interventions as iv
from tunescope.experiments import inline
from tunescope.experiments.derived_interventions import DerivedInline, GateSpec, VoiceSpec, class_of
from tunescope.experiments.strict import explained
from tunescope.experiments.tensor_source import TensorRef
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.typing import Tensor

if TYPE_CHECKING:
    from tunescope.experiments.materials import Materials
    from workbench.models.pair import ModelPair

Results = Callable[[str], Any]
"""The name of an earlier step -> what it found: a recording, or a probe's result."""


class RecipeBuilder:
    """Builds the recipes of one cell."""

    def __init__(self, pair: ModelPair, materials: Materials, results: Results) -> None:
        self._pair = pair
        self._materials = materials
        self._results = results

    def build(self, spec: inline.RecipeSpec) -> iv.Recipe:
        """The recipe. Raises :class:`UserError` for a tensor that is missing or does not fit."""
        if spec.file is not None:
            recipe = self._saved(spec.file)
        elif spec.line is not None:
            recipe = self._line(spec.line)
        else:
            recipe = iv.Recipe(
                [intervention for entry in spec.interventions or () for intervention in self._made(entry)]
            )
        return recipe if spec.strength == 1.0 else recipe * spec.strength

    def _made(self, spec: Any) -> list[Any]:
        """The interventions of one entry; a found recipe may hold several."""
        match spec:
            case inline.HeadOffsetSpec():
                return self._head_offsets(spec)
            case inline.HeadScaleSpec():
                return [self._plainly(spec, scales=self._scales(spec.scales))]
            case inline.ExpertSwitchSpec():
                return [self._plainly(spec, off=self._experts(spec.off), on=self._experts(spec.on))]
            case inline.SubspaceKnobSpec():
                return self._knobs(spec)
            case inline.ConceptAblationSpec():
                return self._ablations(spec)
            case inline.SavedSpec():
                saved = self._line(spec.line) if spec.file is None else self._saved(spec.file)
                return list(saved if spec.strength == 1.0 else saved * spec.strength)
            case inline.LayerScaleSpec():
                return [replace(iv.LayerScale.from_pair(self._pair, spec.a, spec.b), strength=spec.strength)]
            case inline.GraftSpec():
                graft = self._found(spec.skill, "GraftResult")
                return [replace(graft.intervention(self._pair), strength=spec.strength)]
        return [self._derived(spec)]

    def _derived(self, spec: DerivedInline) -> Any:
        """The intervention of a schema that was made from its class."""
        return class_of(spec.kind)(
            **{name: self._field(kind, getattr(spec, name)) for name, kind in spec.kinds.items()}
        )

    def _placed(self, recipe: iv.Recipe, spec: inline.AtSites) -> list[Any]:
        """The interventions of a recipe that a step found, where and how strongly the file says."""
        changes: dict[str, Any] = {"positions": spec.positions, "when": self._gate(spec.when)}
        if not isinstance(spec, inline.ConceptAblationSpec):
            changes["strength"] = spec.strength
        interventions: list[Any] = list(recipe)
        return [replace(intervention, **changes) for intervention in interventions]

    def _gate(self, spec: GateSpec | None) -> iv.Gate | None:
        if spec is None:
            return None
        settings = {name: getattr(spec, name) for name in GateSpec.model_fields if name != "direction"}
        return iv.Gate(**settings, direction=self._tensor(spec.direction))

    def _voice(self, voice: str | VoiceSpec) -> Any:
        if isinstance(voice, str):
            return self._pair.models[voice]
        return {**voice.plain(), "model": self._pair.models[voice.model]}

    def _field(self, kind: str, value: Any) -> Any:
        if value is None or kind == "plain":
            return value
        if kind == "gate":
            return self._gate(value)
        if kind == "model":
            return getattr(self._pair, value)
        if kind == "models":
            return {name: self._voice(voice) for name, voice in value.items()}
        if kind == "tensors":
            return {label: self._tensor(vector) for label, vector in value.items()}
        return self._tensor(value)

    def _found(self, ref: inline.FoundRef, *kinds: str) -> Any:
        return found_in(ref, kinds, self._materials, self._results)

    def _saved(self, file: str) -> iv.Recipe:
        from interventions.exchange.reading import load_recipe

        return load_recipe(self._materials.path(file)).with_models_of(self._pair.models.values())

    def _line(self, line: str | None) -> iv.Recipe:
        recipe = iv.recipe_from_text(line or "", self._materials.book())
        return recipe.with_models_of(self._pair.models.values())

    def _plainly(self, spec: Any, **tensors: Any) -> Any:
        """The class of interventions with the settings of the schema."""
        settings = {name: getattr(spec, name) for name in type(spec).model_fields if name not in ("kind", *tensors)}
        if "when" in settings:
            settings["when"] = self._gate(settings["when"])
        return getattr(iv, spec.kind)(**settings, **tensors)

    def _head_offsets(self, spec: inline.HeadOffsetSpec) -> list[Any]:
        if not isinstance(spec.vectors, inline.ProbedHeads):
            return [self._plainly(spec, vectors={head: self._tensor(vector) for head, vector in spec.vectors.items()})]
        probe = self._found(spec.vectors, "HeadProbe")
        recipe = probe.recipe(spec.vectors.first, 1.0, spec.vectors.direction)
        return self._placed(recipe, spec)

    def _scales(self, scales: Any) -> dict[str, Any]:
        if not isinstance(scales, inline.ScaledHeads):
            return {head: torch.tensor(scale) for head, scale in scales.items()}
        best = self._found(scales, "Patching", "HeadProbe").frame()
        if "head" not in best:
            raise UserError(
                f"{scales.file or scales.from_step} is no map of heads: give one that has a score for each."
            )
        best = best.dropna(subset="head").head(scales.first)
        pairs = zip(best["layer"], best["head"], strict=True)
        return {f"L{int(layer)}H{int(head)}": torch.tensor(scales.scale) for layer, head in pairs}

    def _experts(self, experts: Any) -> list[str]:
        return (
            self._found(experts, "ExpertMap").ranking(experts.first) if isinstance(experts, inline.FirstOf) else experts
        )

    def _knobs(self, spec: inline.SubspaceKnobSpec) -> list[Any]:
        if spec.knob is None:
            assert spec.layer is not None  # the schema asks for it
            made = iv.SubspaceKnob(
                spec.layer, self._tensor(spec.direction), torch.tensor(spec.value), spec.mode, spec.site,
                strength=spec.strength, positions=spec.positions, when=self._gate(spec.when),
            )  # fmt: skip
            return [made]
        recipe = self._found(spec.knob, "Knob").recipe(spec.knob.to)
        return self._placed(recipe, spec)

    def _ablations(self, spec: inline.ConceptAblationSpec) -> list[Any]:
        if spec.concepts is None:
            assert spec.layer is not None  # the schema asks for it
            mean = None if spec.mean is None else self._tensor(spec.mean)
            return [
                iv.ConceptAblation(
                    spec.layer, self._tensor(spec.directions), spec.site, mean,
                    strength=spec.strength, positions=spec.positions, when=self._gate(spec.when),
                )
            ]  # fmt: skip
        concepts = self._found(spec.concepts, "ConceptDirections")
        recipe = concepts.recipe(spec.concepts.directions, spec.concepts.to, spec.strength)
        return self._placed(recipe, spec)

    def _tensor(self, value: Any) -> Tensor:
        if not isinstance(value, TensorRef):
            return torch.tensor(value)
        if value.file is not None:
            return _from_file(self._materials.path(value.file), value.tensor)
        return _from_result(self._results(str(value.from_step)), value)


def recipe_of(interventions: Sequence[Any], pair: ModelPair, folder: str | Path = ".") -> iv.Recipe:
    """The recipe of ``interventions``, written as an experiment file writes them; files are relative to ``folder``.

    Args:
        interventions: Mappings such as ``{"kind": "Offset", "layer": 12, "vector": {"file": "v.safetensors"}}``.
        pair: The models; some interventions read weights of the tuned side.
        folder: Where relative paths start.

    Raises:
        UserError: A kind, key or value is wrong, or a file is missing.
    """
    from tunescope.experiments.materials import Materials

    try:
        spec = inline.RecipeSpec.model_validate([*interventions])
    except ValidationError as error:
        raise explained(error, [*interventions], "recipe") from None

    def no_steps(step: str) -> Any:
        raise UserError(f"There is no experiment here whose step {step} could be read: give a file.")

    return RecipeBuilder(pair, Materials(Path(folder)), no_steps).build(spec)


def found_in(ref: inline.FoundRef, kinds: Sequence[str], materials: Materials, results: Results) -> Any:
    """What ``ref`` names: an earlier step's result, or one from a file, which must be one of ``kinds`` (classes)."""
    if ref.file is None:
        return results(str(ref.from_step))
    result = materials.result(ref.file)
    if type(result).__name__ not in kinds:
        wanted = " or ".join(kinds)
        raise UserError(f"{materials.path(ref.file)} holds a {type(result).__name__}; this needs a {wanted}.")
    return result


def _from_file(path: Any, name: str | None) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            known = list(file.keys())
            if name is None and len(known) != 1:
                raise UserError(f"{path} holds {len(known)} tensors: say which with tensor ({', '.join(known[:10])}).")
            if name is not None and name not in known:
                raise unknown_name(f"tensor in {path}", name, known)
            return file.get_tensor(name or known[0])
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}): give one that holds the tensor.") from error


def _from_result(result: Any, ref: TensorRef) -> Tensor:
    """A vector of a recording, of an activation difference, of concepts, or of a knob."""
    from probes import ActivationDelta, ConceptDirections
    from workbench.recording.recording import Recording

    if isinstance(result, Recording):
        return _mean_shift(result, ref)
    if isinstance(result, ActivationDelta):
        name = f"{_site(ref)}/{ref.kind}"
        if name not in result.vectors:
            raise unknown_name(f"direction of step {ref.from_step}", name, result.vectors)
        return _numbered(result.vectors[name], ref)
    if isinstance(result, ConceptDirections):
        return _numbered(result.directions, ref)
    return _numbered(result.direction.T, ref)


def _numbered(directions: Tensor, ref: TensorRef) -> Tensor:
    if not 0 <= ref.direction < len(directions):
        raise UserError(f"Step {ref.from_step} has directions 0 to {len(directions) - 1}; got {ref.direction}.")
    return directions[ref.direction].float()


def _mean_shift(recording: Any, ref: TensorRef) -> Tensor:
    """Mean of tuned - base; with ``where``, mean of the matching rows minus mean of the others, in one model."""
    site = _site(ref)
    own = torch.as_tensor(recording[ref.role][site][:]).float()
    if not ref.where:
        return own.mean(0) - torch.as_tensor(recording["base"][site][:]).float().mean(0)
    inside = torch.ones(len(own), dtype=torch.bool)
    for column, value in ref.where.items():
        if column not in recording.index:
            raise unknown_name("column of the recording", column, recording.index.columns)
        inside &= torch.tensor([label == value for label in recording.index[column]])
    if not bool(inside.any()) or bool(inside.all()):
        raise UserError(f"{int(inside.sum())} of {len(inside)} recorded rows match where: a contrast needs both sides.")
    return own[inside].mean(0) - own[~inside].mean(0)


def _site(ref: TensorRef) -> str:
    if ref.layer is None:
        raise UserError(f"A vector from step {ref.from_step} needs layer: add it beside from.")
    return Site.parse(ref.site).at(ref.layer).name
