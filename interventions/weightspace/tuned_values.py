"""The tuned model's values under the base's names, whether they are stored or made by an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interventions.weightspace.swapping import base_parameters, find_parameter
from workbench.errors import NotSupported, UserError
from workbench.models.adapter_layers import acting_adapters
from workbench.typing import Tensor


def changed_names(pair: Any) -> list[str]:
    """Names of the base's parameters whose values differ in the tuned model, tied ones once.

    Raises:
        NotSupported: One tensor of the base has two values in the tuned model (a tied head that was trained apart), or
            a bias changed that the base does not have: no change of the base's weights makes that model.
    """
    before = base_parameters(pair.base.hf)
    if pair.adapter is None:
        after = base_parameters(pair.tuned.hf)
        names = [name for name in before if name in after and not _equal(before[name], after[name])]
        _check_ties(before, names, lambda name: after[name].data)
    else:
        made = _Made.by(pair)
        names = made.names
        _check_ties(before, names, lambda name: made.value(pair, name))
    distinct = {id(before[name]): name for name in reversed(names)}
    return [name for name in names if distinct[id(before[name])] == name]


def tuned_values(pair: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """Values of those parameters in the tuned model, in the base's dtype.

    Of a full model they are its own tensors, not copied; an adapter's are base + the change it makes, rounded once.
    """
    if pair.adapter is None:
        after = base_parameters(pair.tuned.hf)
        return {name: find_parameter(after, name).data for name in names}
    made = _Made.by(pair)
    return {name: made.value(pair, name) for name in names}


@dataclass(frozen=True)
class _Made:
    """What an adapter changes in its base, by the base's names of parameters."""

    modules: dict[str, str]
    """Name of a weight -> the module that is adapted there."""
    saved: dict[str, Tensor]
    """Parameters of modules that are held whole."""
    biases: dict[str, Tensor]
    """Name -> what is added to a bias."""
    own: dict[str, Tensor]
    """Other weights of the base under the adapter, where the adapter came with its own (trained biases, PiSSA)."""

    @classmethod
    def by(cls, pair: Any) -> _Made:
        from workbench.models.weight_changes import adapted_modules, bias_changes

        known = base_parameters(pair.base.hf)
        saved = _saved_parameters(pair.adapter)
        modules = {
            name: module
            for module in adapted_modules(pair.adapter)
            for name in _parameters_of(known, module)
            if name not in saved
        }
        biases = {f"{module}.bias": change for module, change in bias_changes(pair.adapter).items()}
        if added := sorted(name for name in biases if name not in known):
            raise NotSupported(
                f"The adapter adds a bias at {added[0]}, which the base does not have: merge it (merge_and_unload) and "
                "give the merged model as the tuned one."
            )
        own = {} if pair.one_copy else base_parameters(pair.adapter)
        differs = {name: own[name].data for name in own.keys() & known.keys() if not _equal(known[name], own[name])}
        return cls(modules, saved, biases, {name: value for name, value in differs.items() if name not in modules})

    @property
    def names(self) -> list[str]:
        return sorted(self.modules.keys() | self.saved.keys() | self.biases.keys() | self.own.keys())

    def value(self, pair: Any, name: str) -> Tensor:
        """The tuned model's tensor of that name."""
        base = find_parameter(base_parameters(pair.base.hf), name).data
        if name in self.saved:
            return self.saved[name]
        if name in self.modules:
            return (base.double() + self.change(pair, name).to(base.device).double()).to(base.dtype)
        own = self.own.get(name, base)
        if name not in self.biases:
            return own
        return (own.double() + self.biases[name].to(own.device).double()).to(base.dtype)

    def change(self, pair: Any, name: str) -> Tensor:
        """What the adapter adds to an adapted weight, laid out as it is."""
        from workbench.models.weight_changes import effective_delta

        module, base = self.modules[name], None if pair.one_copy else pair.base.hf
        change = effective_delta(pair.adapter, module, base=base)
        return as_stored(pair.base.hf, module, change, base_parameters(pair.base.hf)[name])


def exact_change(pair: Any) -> Callable[[str], Tensor]:
    """Name of a changed parameter -> tuned minus base in float32; an adapter's is not rounded to the base's dtype."""
    made = None if pair.adapter is None else _Made.by(pair)
    base = base_parameters(pair.base.hf)

    def read(name: str) -> Tensor:
        if made is not None and name in made.modules:
            return made.change(pair, name)
        value = tuned_values(pair, [name])[name] if made is None else made.value(pair, name)
        return value.detach().float() - base[name].detach().float()

    return read


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())


def _check_ties(before: Mapping[str, Tensor], names: list[str], value: Callable[[str], Tensor]) -> None:
    """Refuse one tensor under two names that has two values in the tuned model."""
    together: dict[int, list[str]] = {}
    for name, parameter in before.items():
        together.setdefault(id(parameter), []).append(name)
    for tied in together.values():
        if len(tied) > 1 and set(tied) & set(names):
            first = value(tied[0])
            if other := next((name for name in tied[1:] if not _equal(first, value(name))), None):
                raise NotSupported(
                    f"{tied[0]} and {other} are one tensor in the base and two in the tuned model: no change of the "
                    "base's weights makes it. Save the base with a head of its own (tie_word_embeddings=False, the "
                    "embeddings copied into it) and give that."
                )


def as_stored(hf: Any, module: str, change: Tensor, weight: Tensor) -> Tensor:
    """A change [out, in] laid out as the weight it belongs to: GPT-2 keeps [in, out], square matrices too."""
    from transformers.pytorch_utils import Conv1D

    from workbench.models.adapter_layers import bare_module

    root = hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf
    try:
        owner = root.get_submodule(module)
    except AttributeError:
        owner = None  # a parameter adapted by itself
    turned = isinstance((bare_module(owner) or owner) if owner is not None else None, Conv1D)
    return change.transpose(-1, -2) if turned or change.shape != weight.shape else change


def _parameters_of(known: Mapping[str, Tensor], module: str) -> list[str]:
    names = [name for name in (module, f"{module}.weight") if name in known]
    if not names:
        raise UserError(f"The adapter changes {module}, which has no weight of its own in the base.")
    return names


def _saved_parameters(adapter: Any) -> dict[str, Tensor]:
    """Parameters of the modules that the adapter holds whole (``modules_to_save``, norms), by the base's names."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.utils.other import ModulesToSaveWrapper

    copies = {ModulesToSaveWrapper: "modules_to_save", LNTuningLayer: "ln_tuning_layers"}
    parameters = {}
    for path, module in adapter.get_base_model().named_modules():
        if (where := copies.get(type(module))) is not None:
            for active in acting_adapters(module)[:1]:
                for name, parameter in getattr(module, where)[active].named_parameters():
                    parameters[f"{path}.{name}"] = parameter.data
    return parameters
