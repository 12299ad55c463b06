"""The two sides of a weight comparison, opened lazily: folders, hub ids, loaded models, pairs, adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from probes.weights.identities import identities
from probes.weights.naming import Layout, key_of, place_of
from workbench.errors import NotSupported, UserError
from workbench.models import weight_changes
from workbench.models.adapters import base_tensors
from workbench.models.checkpoints import StoredTensor, opened, stored_tensors
from workbench.models.digests import FolderDigests
from workbench.models.loading import load_model
from workbench.models.sources import Kind, Source, describe
from workbench.typing import Float, Tensor

Read = Callable[[], Tensor]
_NOT_ADDITIVE = ("pissa", "olora", "corda", "kasa", "loftq")


@dataclass(frozen=True)
class Factors:
    """A change held as ``up @ down``, the scaling already in ``up``."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank into"]
    scaling: float


@dataclass(frozen=True)
class Opened:
    """Key -> readers of the base's and the tuned tensor; ``factors`` where the change is known as factors.

    An adapter names only what it changes; of the other weights of the layers, ``tuned`` reads the base's own.
    ``identities`` says what the two models are. It hashes what has been read of a folder and reads the rest, so it is
    called last.
    """

    layout: Layout
    base: dict[str, Read]
    tuned: dict[str, Read]
    factors: dict[str, Factors]
    identities: Callable[[], dict[str, Any]]
    unmatched: tuple[str, ...] = field(default=())


class NotInFiles(NotSupported):
    """An adapter whose files alone do not tell how it changes the weights; loaded with its base, it may."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: load the pair (workbench.load_pair) and give that.")
        self.reason = reason


def open_weights(base: Any, tuned: Any = None) -> Opened:
    """Open a pair, or two models given apart. Nothing is loaded until a reader is called.

    Raises :class:`UserError` when only one side is given or the two share no tensor.
    """
    given = {"base": base, "tuned": tuned}
    if tuned is None:
        if not (hasattr(base, "base") and hasattr(base, "tuned")):
            raise UserError("Give both models: weight_delta(base, tuned), or a pair from load_pair().")
        given = {"base": base.base, "tuned": base.tuned}
    below, above = (_readable(describe(getattr(one, "hf", one))) for one in given.values())
    layout = Layout.of(_config(below))
    digests = {source: FolderDigests(source.local()) for source in (below, above) if source.kind is Kind.MODEL}
    before = _base_readers(below, digests)
    factors: dict[str, Factors] = {}
    if above.kind is Kind.ADAPTER:
        factors, after = _stored_adapter(above)
    elif above.kind is Kind.PEFT:
        factors, after = _loaded_adapter(above.model, below.model, before, layout)
    elif above.model is not None:
        after = {key_of(name): partial(_same, tensor) for name, tensor in base_tensors(above.model)}
    else:
        after = _stored(digests[above])
    found = set(after) | set(factors)
    partly = above.is_adapter  # an adapter names only what it changes
    shared = found & set(before)
    if partly:
        same = {name for name in set(before) - found if place_of(name).layer is not None}
        after = after | {name: before[name] for name in same}
    if len(shared) * 2 < len(found if partly else before):
        raise UserError(
            f"{below.name} and {above.name} share only {len(shared)} tensor names ("
            f"{next(iter(set(before) - found), 'none')} against {next(iter(found - set(before)), 'none')}); "
            "give two versions of one architecture."
        )
    missing = sorted(found - set(before) if partly else found ^ set(before))
    sources = dict(zip(given, (below, above), strict=True))
    return Opened(layout, before, after, factors, partial(identities, given, sources, digests), tuple(missing))


def _readable(source: Source) -> Source:
    """``source``; a GGUF file loaded, as its tensors are packed and have other names than a model's."""
    return source if source.gguf is None else replace(source, kind=Kind.LOADED, model=load_model(source, "cpu"))


def _config(source: Source) -> Mapping[str, Any]:
    if source.model is not None:
        root = source.model.get_base_model() if source.kind is Kind.PEFT else source.model
        return root.config.to_dict()
    return source.config


def _base_readers(source: Source, digests: Mapping[Source, FolderDigests]) -> dict[str, Read]:
    if source.kind is Kind.ADAPTER:
        raise UserError(f"{source.name} is an adapter; give the base model first and the adapter second.")
    if source.model is not None:
        return {key_of(name): partial(_same, tensor) for name, tensor in base_tensors(source.model)}
    return _stored(digests[source])


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _stored(digests: FolderDigests) -> dict[str, Read]:
    return {key_of(name): partial(digests.read, name) for name in digests.tensors}


def _read_stored(stored: StoredTensor) -> Tensor:
    # opened anew each time: the pages of a memory map count as ours until it is closed
    with opened(stored.file) as file:
        return file.get_tensor(stored.name)


def _stored_adapter(source: Source) -> tuple[dict[str, Factors], dict[str, Read]]:
    """Factors of a LoRA folder, and readers of the tensors it stores whole (modules_to_save, biases)."""
    config, folder = source.config, source.local()
    if why := _not_plain(config):
        raise NotInFiles(f"{source.name} is {why}, whose change cannot be read from its files alone")
    stored = stored_tensors(folder, adapter=True)
    whole: dict[str, Read] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        path, mark, _ = name.removeprefix("base_model.model.").rpartition(".lora_")
        if not mark:
            whole[key_of(name)] = partial(_read_stored, tensor)
            continue
        values = _read_stored(tensor).float()
        kind = name.removesuffix(".weight").rpartition("lora_")[2]
        side = {"A": "down", "B": "up", "embedding_A": "up", "embedding_B": "down"}[kind]
        halves.setdefault(path, {})[side] = values.T if kind.startswith("embedding") else values
    factors: dict[str, Factors] = {}
    for module, half in halves.items():
        scaling = _scaling(config, module, half["down"].shape[0])
        factors[f"{key_of(module)}.weight"] = Factors(half["up"] * scaling, half["down"], scaling)
    return factors, whole


def _not_plain(config: Mapping[str, Any]) -> str | None:
    kind, how = config.get("peft_type"), str(config.get("init_lora_weights", ""))
    if kind != "LORA":
        return f"a {kind} adapter"
    if config.get("use_dora"):
        return "a DoRA adapter"
    if config.get("target_parameters"):
        return "a LoRA on fused expert parameters"
    return f"a LoRA initialised as {how}" if how.lower().startswith(_NOT_ADDITIVE) else None


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rslora; the rank is the factors' own (EVA spreads it unevenly)."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _loaded_adapter(
    model: Any, base_model: Any, before: Mapping[str, Read], layout: Layout
) -> tuple[dict[str, Factors], dict[str, Read]]:
    """A ``PeftModel``: factors where they are the whole change, readers of the effective weight elsewhere."""
    shared = base_model in (model, model.get_base_model())
    known: dict[str, Factors] = {}
    after = _replaced_modules(model)
    if not shared:
        after = {key_of(name): partial(_same, tensor) for name, tensor in base_tensors(model)} | after
    for module in weight_changes.adapted_modules(model):
        key = key_of(module if key_of(module) in before else f"{module}.weight")
        low_rank = weight_changes.factors(model, module) if shared else None
        if low_rank is not None:
            up, down = low_rank.B.detach().float(), low_rank.A.detach().float()
            known[key] = Factors(up * low_rank.scaling, down, low_rank.scaling)
        else:
            after[key] = partial(_effective, model, module, None if shared else base_model, before[key], layout)
    return known, after


def _effective(model: Any, module: str, base: Any, read_base: Read, layout: Layout) -> Tensor:
    """The tuned weight in float64, laid out as the base's: rounding must not eat a small change."""
    weight = read_base()
    delta = weight_changes.effective_delta(model, module, base=base).double().to(weight.device)
    return weight.double() + (delta.mT if layout.turned(place_of(module).module, weight.ndim) else delta)


def _replaced_modules(model: Any) -> dict[str, Read]:
    """Readers of whole modules that were trained beside the adapter (``modules_to_save``)."""
    from peft.utils.other import ModulesToSaveWrapper

    found: dict[str, Read] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for inner, parameter in module.modules_to_save[module.active_adapters[0]].named_parameters():
                found[key_of(f"{name}.{inner}")] = partial(_same, parameter.detach())
    return found
