"""The two sides of a weight comparison, opened lazily: folders, hub ids, loaded models, pairs, adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from probes.weights.identities import identities
from probes.weights.loaded_adapter import loaded_adapter
from probes.weights.naming import Layout, key_of
from probes.weights.stacks import UNLOADED, Stacks
from probes.weights.stored_adapter import Factors, stored_adapter
from workbench.errors import UserError
from workbench.models import checkpoints
from workbench.models.loading import load_model, quantization
from workbench.models.quantized import weight_readers
from workbench.models.sources import Kind, Source, describe
from workbench.models.stored_model import NotInFiles, Reader, StoredModel
from workbench.typing import Tensor

__all__ = ["Factors", "NotInFiles", "Opened", "open_weights"]

_NO_WEIGHTS = (".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq")


@dataclass(frozen=True)
class Opened:
    """Key -> readers of the base's and the tuned tensor; ``factors`` where the change is known as factors.

    An adapter names only what it changes; of the other weights of the layers, ``tuned`` reads the base's own.
    ``identities`` says what the two models are. It hashes what has been read of a folder and reads the rest, so it is
    called last.
    """

    layout: Layout
    stacks: Stacks
    config: Mapping[str, Any]
    base: dict[str, Reader]
    tuned: dict[str, Reader]
    factors: dict[str, Factors]
    identities: Callable[[], dict[str, Any]]
    unmatched: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Side:
    """One model opened: readers by key, keys of weights that share another's tensor, and what must be said of it."""

    source: Source
    readers: dict[str, Reader]
    tied: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    quantized: str | None = None
    said: tuple[str, ...] = ()


def open_weights(base: Any, tuned: Any = None) -> Opened:
    """Open a pair, or two models given apart. Nothing is loaded until a reader is called.

    Raises :class:`UserError` when only one side is given or the two share no tensor.
    """
    sides = {"base": base, "tuned": tuned}
    if tuned is None:
        if not (hasattr(base, "base") and hasattr(base, "tuned")):
            raise UserError("Give both models: weight_delta(base, tuned), or a pair from load_pair().")
        if getattr(base, "attachment", None) is not None:
            raise UserError(
                f"The tuned model is its base with an attachment ({base.attachment.kind}), which changes no weight: "
                "read it by its parts (probes.part_effects) or by activations."
            )
        sides = {"base": base.base, "tuned": base.tuned}
    below, above = (_readable(describe(getattr(model, "hf", model))) for model in sides.values())
    if below.kind is Kind.ADAPTER:
        raise UserError(f"{below.name} is an adapter; give the base model first and the adapter second.")
    stored = {source: StoredModel(source) for source in (below, above) if source.kind is Kind.MODEL}
    layout = Layout.of(_config(below))
    before = _opened(below, stored.get(below))
    factors, side = _tuned_side(above, before, layout, stored.get(above))
    readers, after, stacks = dict(before.readers), side.readers, Stacks.of(before.readers)
    if not above.is_adapter:
        names = Stacks.of(after).aligned(after, stacks, readers)
        after = {names[name]: read for name, read in after.items()}
        # and one that the tuned model has tied, with what it was
        after |= {
            key: after[own] for key, own in side.tied.items() if key in set(readers) - set(after) and own in after
        }
    tuned_names = set(after) | set(factors)
    # a head trained beside embeddings that it was tied to is compared with them
    readers |= {key: readers[own] for key, own in before.tied.items() if key in tuned_names and own in readers}
    _check_shared(below, above, set(readers), tuned_names)
    if above.is_adapter:
        new = [key for key in tuned_names - set(readers) if key.endswith(".bias") and f"{key[:-4]}weight" in readers]
        readers |= {key: partial(_no_bias, after[key]) for key in new}
        inside = {name for name in set(readers) - tuned_names if _in_layers(stacks, name)}
        after = after | {name: readers[name] for name in inside}
    missing = sorted(tuned_names - set(readers) if above.is_adapter else tuned_names ^ set(readers))
    sources = dict(zip(sides, (below, above), strict=True))
    rounded = (before, side) if above.is_adapter else [
        replace(own, quantized=own.quantized or _unpacked(sides[role], sources[role]))
        for role, own in (("base", before), ("tuned", side))
    ]  # fmt: skip
    return Opened(
        layout, Stacks.of(readers), _config(below), readers, after, factors,
        partial(identities, sides, sources, stored), tuple(missing), _notes(*rounded),
    )  # fmt: skip


def _tuned_side(
    above: Source, before: _Side, layout: Layout, stored: StoredModel | None
) -> tuple[dict[str, Factors], _Side]:
    # an adapter may sit on a head that shares the embeddings' weight
    known = {key: before.readers[own] for key, own in before.tied.items() if own in before.readers} | before.readers
    if above.kind is Kind.ADAPTER:
        factors, after = stored_adapter(above, known)
        return factors, _Side(above, after)
    if above.kind is Kind.PEFT:
        base = before.source.model
        factors, after = loaded_adapter(above.model, base, known, layout)
        return factors, _Side(above, after, quantized=_quantized(above) if base is not above.model else None)
    return {}, _opened(above, stored)


def _opened(source: Source, stored: StoredModel | None) -> _Side:
    """A whole model, loaded or in a folder."""
    if stored is not None:
        tied = stored.plan.tied
        readers, spare = _keyed(stored.readers()), _spare(stored)
        unused = stored.plan.unused
        shared = {key_of(name): key_of(own) for name, own in tied.items()}
        said = checkpoints.about_doubled(stored.digests.folder, source.name)
        return _Side(source, readers | spare, shared, unused, said=said)
    root = source.model.get_base_model() if source.kind is Kind.PEFT else source.model
    tied = getattr(root, "all_tied_weights_keys", None) or {}
    return _Side(
        source, _keyed(weight_readers(root)), {key_of(name): key_of(own) for name, own in tied.items()},
        quantized=_quantized(source),
    )  # fmt: skip


def _keyed(readers: Mapping[str, Reader]) -> dict[str, Reader]:
    return {key_of(name): read for name, read in readers.items()}


def _spare(stored: StoredModel) -> dict[str, Reader]:
    """Weights that the loaded model has no place for, under a name of their own; not its old buffers."""
    spare = stored.unused_readers()
    readers = {name: read for name, read in spare.items() if name.endswith((".weight", ".bias"))}
    return {f"{UNLOADED}.{key_of(name)}": read for name, read in readers.items() if not name.endswith(_NO_WEIGHTS)}


def _no_bias(read: Reader) -> Tensor:
    """The bias that a base without one has."""
    return read().new_zeros(()).expand_as(read())


def _quantized(source: Source) -> str | None:
    return quantization(_config(source))


def _unpacked(model: Any, source: Source) -> str | None:
    """How the weights of a side are stored that were unpacked as it was loaded."""
    stored_as: str | None = getattr(model, "stored_as", None)
    return quantization(source.config) if stored_as is None and source.gguf is not None else stored_as


def _readable(source: Source) -> Source:
    """``source``; a GGUF file loaded, as its tensors are packed and have other names than a model's."""
    return source if source.gguf is None else replace(source, kind=Kind.LOADED, model=load_model(source, "cpu"))


def _config(source: Source) -> Mapping[str, Any]:
    if source.model is not None:
        root = source.model.get_base_model() if source.kind is Kind.PEFT else source.model
        config: Mapping[str, Any] = root.config.to_dict()
        return config
    return source.config


def _in_layers(stacks: Stacks, name: str) -> bool:
    return stacks.place(name).layer is not None


def _check_shared(below: Source, above: Source, before: set[str], names: set[str]) -> None:
    shared = names & before
    if len(shared) * 2 >= min(len(names), len(before)) and shared:
        return
    raise UserError(
        f"{below.name} and {above.name} share only {len(shared)} tensor names ("
        f"{next(iter(sorted(before - names)), 'none')} against {next(iter(sorted(names - before)), 'none')}); "
        "give two versions of one architecture."
    )


def _notes(before: _Side, after: _Side) -> tuple[str, ...]:
    said = [*before.said, *after.said]
    for side, whose in ((before, "base"), (after, "tuned model")):
        if side.quantized is not None:
            said.append(
                f"The {whose}'s weights are quantized ({side.quantized}) and were compared as what they stand for, so "
                "the change includes their rounding."
            )
        if side.unused:
            said.append(
                f"{len(side.unused)} tensors in the files of the {whose} are not part of the model its config makes "
                f"({side.unused[0]})."
            )
    return tuple(said)
