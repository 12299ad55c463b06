"""What a model folder's tensors become in the loaded model: transformers' own renaming, fusing and splitting."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from workbench.errors import UserError
from workbench.models import checkpoints
from workbench.models.adapter_layers import base_tensors
from workbench.models.loading import WRONG_TYPES, load_model, quantization
from workbench.models.sources import Source
from workbench.typing import Tensor

_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Conversion:
    """Weights of the loaded model (``loaded``) that are made of the same stored tensors (``stored``)."""

    stored: tuple[str, ...]
    loaded: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of the loaded weights."""
    patterns: tuple[str, ...] = ()
    """Which pattern of the converter each stored tensor matched."""
    converter: Any = field(default=None, repr=False)
    """transformers' ``WeightConverter``; None of a tensor that is at most renamed."""


class LoadPlan:
    """How transformers loads stored tensors into the model of ``source``, worked out without reading a weight.

    The model is made as a shape alone. Where that cannot be, every tensor stands for itself. ``same`` says whether two
    stored tensors hold the same numbers: weights that the config ties are loaded apart where they do not.
    """

    def __init__(self, source: Source, stored: _Shapes, same: Callable[[str, str], bool] = lambda *_: True) -> None:
        self._source = source
        self._shapes = stored
        self._same = same

    @cached_property
    def shape(self) -> Any:
        """The model without its weights; None where transformers cannot make it."""
        checkpoints.check_depth(self._source.config, self._shapes, self._source.name)
        try:
            return load_model(self._source, device="meta")
        except (UserError, ValueError, OSError, ImportError, *WRONG_TYPES):
            return None

    @cached_property
    def conversions(self) -> list[Conversion]:
        """One for each weight, or group of weights, of the loaded model, in the order of the files."""
        if self.shape is None:
            return [Conversion((name,), (name,), (shape,)) for name, shape in self._shapes.items()]
        tied, names = self.tied, {name for plan in self._all_planned for name in plan.loaded}
        return [
            plan for plan in self._all_planned if not all(name in tied and tied[name] in names for name in plan.loaded)
        ]

    @cached_property
    def tied(self) -> dict[str, str]:
        """Weights of the loaded model that share the tensor of another one -> that one."""
        stored = {plan.loaded[0]: plan.stored[0] for plan in self._all_planned if plan.converter is None}
        named = getattr(self.shape, "all_tied_weights_keys", None) or {}
        return {
            name: own
            for name, own in named.items()
            if name not in stored or own not in stored or self._same(stored[name], stored[own])
        }  # fmt: skip

    @cached_property
    def _all_planned(self) -> list[Conversion]:
        return [] if self.shape is None else [self._planned(key, parts) for key, parts in self._grouped.items()]

    @cached_property
    def missing(self) -> list[str]:
        """Weights that the config asks for and no stored tensor gives, which loading would fill with random numbers."""
        if self.shape is None:
            return []
        there = {name for planned in self._all_planned for name in planned.loaded}
        shared = {name for name, own in self.tied.items() if own in there or name in there}
        passed_over = getattr(self.shape, "_keys_to_ignore_on_load_missing", None) or ()
        return sorted(
            name
            for name in self.shape.state_dict().keys() - there - shared
            if not any(re.search(pattern, name) for pattern in passed_over)
        )

    @cached_property
    def misshapen(self) -> dict[str, tuple[list[int], list[int]]]:
        """Loaded weight -> its shape in the files and by the config, where they differ."""
        wanted = {} if self.shape is None else self.shape.state_dict()
        return {
            name: (list(shape), list(wanted[name].shape))
            for planned in self._all_planned
            for name, shape in zip(planned.loaded, planned.shapes, strict=True)
            if tuple(wanted[name].shape) != tuple(shape)
        }

    @cached_property
    def unused(self) -> tuple[str, ...]:
        """Stored tensors that the loaded model has no place for."""
        if self.shape is None:
            return ()
        used = {name for parts in self._grouped.values() for name, _, _ in parts}
        return tuple(name for name in self._shapes if name not in used)

    def convert(self, conversion: Conversion, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loaded model's weights made of the ``stored`` tensors of one conversion."""
        if conversion.converter is None:
            return {conversion.loaded[0]: stored[conversion.stored[0]]}
        return _converted(
            self.shape,
            conversion.loaded[0],
            conversion.converter,
            zip(conversion.stored, conversion.patterns, strict=True),
            stored,
        )

    def empty(self, conversion: Conversion) -> dict[str, Tensor]:
        """The loaded weights of a conversion, as shapes alone."""
        sized = zip(conversion.loaded, conversion.shapes, strict=True)
        return {name: torch.empty(shape, device="meta") for name, shape in sized}

    def saved(self, loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the loaded model under the names and in the pieces in which ``save_pretrained`` writes them."""
        if self.shape is None or not self._class_conversions:
            return dict(loaded)
        return as_saved(self.shape, loaded.items(), self._class_conversions)

    @cached_property
    def saved_names(self) -> set[str]:
        """Every name under which the whole model is saved."""
        if self.shape is None:
            return set(self._shapes)
        return set(self.saved(dict(base_tensors(self.shape)))) - set(self.tied)

    @cached_property
    def _class_conversions(self) -> list[Any]:
        return class_conversions(self.shape)

    @cached_property
    def _grouped(self) -> dict[str, list[tuple[str, str | None, Any]]]:
        """Loaded name (the first of a converter's) -> stored name, matched pattern and converter of its parts."""
        return _assigned(self.shape, self._shapes)

    def _planned(self, key: str, parts: list[tuple[str, str | None, Any]]) -> Conversion:
        stored = tuple(name for name, _, _ in parts)
        converter = parts[0][2]
        if converter is None:
            return Conversion(stored[-1:], (key,), (self._shapes[stored[-1]],))
        patterns = tuple(str(pattern) for _, pattern, _ in parts)
        empty = {name: torch.empty(self._shapes[name], device="meta") for name in stored}
        made = _converted(self.shape, key, converter, zip(stored, patterns, strict=True), empty)
        shapes = tuple(tuple(tensor.shape) for tensor in made.values())
        return Conversion(stored, tuple(made), shapes, patterns, converter)


def _assigned(shape: Any, stored: Iterable[str]) -> dict[str, list[tuple[str, str | None, Any]]]:
    """As ``transformers.core_model_loading.convert_and_load_state_dict_in_model`` collects the stored tensors."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(shape)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted, prefix = shape.state_dict(), shape.base_model_prefix
    groups: dict[str, list[tuple[str, str | None, Any]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        loaded, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if loaded not in wanted and name in wanted:
            loaded, pattern = rename_source_key(name, [], [], prefix, wanted)
        if loaded in wanted:
            groups.setdefault(loaded, []).append((name, pattern, None if pattern is None else by_pattern[pattern]))
    return groups


def _converted(
    shape: Any, key: str, converter: Any, parts: Iterable[tuple[str, str]], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    own = copy.deepcopy(converter)
    for name, pattern in parts:
        own.add_tensor(key, name, pattern, tensors[name])
    made = own.convert(key, model=shape, config=shape.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def as_saved(
    model: Any, named: Iterable[tuple[str, Tensor]], conversions: Sequence[Any] | None = None
) -> dict[str, Tensor]:
    """Weights under the names and in the pieces in which ``save_pretrained`` writes them; mostly views.

    Those are the class's own, however the files were laid out that ``model`` was loaded from. Quantized weights keep
    their names. ``conversions``: :func:`class_conversions` of the model, where they are known already.
    """
    from transformers.core_model_loading import revert_weight_conversion

    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    if quantization(root.config) is not None:
        return dict(named)
    own = class_conversions(root) if conversions is None else conversions
    if not own:
        return dict(named)
    had, used = hasattr(root, "_weight_conversions"), getattr(root, "_weight_conversions", None)
    root._weight_conversions = list(own)
    try:
        return revert_weight_conversion(root, dict(named))
    finally:
        if had:
            root._weight_conversions = used
        else:
            del root._weight_conversions


def class_conversions(model: Any) -> list[Any]:
    """How transformers converts a checkpoint of the model's class, apart from prefixes that some of them lack."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    mapping = get_model_conversion_mapping(model, add_legacy=False)
    return [conversion for conversion in mapping if not isinstance(conversion, PrefixChange)]
