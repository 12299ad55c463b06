"""What an adapter's files tell of its change of the weights: factors of a LoRA, and tensors stored whole."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from probes.weights.naming import key_of
from probes.weights.stacks import UNLOADED
from workbench.errors import UserError
from workbench.models import checkpoints
from workbench.models.adapter_fit import check_patterns, is_targeted, loaded_by_peft, passed_over
from workbench.models.checkpoints import StoredTensor, opened, stored_tensors
from workbench.models.sources import Source
from workbench.models.stored_model import NotInFiles, Reader
from workbench.typing import Float, Tensor

_NOT_ADDITIVE = ("pissa", "olora", "corda", "kasa", "loftq")
_NOT_PLAIN = {
    "use_dora": "a DoRA adapter",
    "target_parameters": "a LoRA on fused expert parameters",
    "trainable_token_indices": "an adapter with trained tokens",
    "layer_replication": "a LoRA that repeats layers of its base",
    "alora_invocation_tokens": "an activated LoRA",
    "arrow_config": "a LoRA mixed by Arrow",
    "use_qalora": "a QALoRA adapter",
    "use_bdlora": "a block-diagonal LoRA",
}
_LARGEST = 1e300
_SIDES = {"A": "down", "B": "up", "embedding_A": "up", "embedding_B": "down"}


@dataclass(frozen=True)
class Factors:
    """A change held as ``up @ down``, the scaling already in ``up``."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank into"]
    scaling: float


def stored_adapter(source: Source, base: Mapping[str, Reader]) -> tuple[dict[str, Factors], dict[str, Reader]]:
    """Factors of a LoRA folder, and readers of the tensors it changes otherwise (``modules_to_save``, biases).

    Args:
        source: the adapter's folder.
        base: readers of the base's weights, to which a bias of ``lora_bias`` is added.

    Raises:
        NotInFiles: where the change depends on more than the adapter's files, or its modules are named otherwise than
            the base's.
        UserError: for tensors that were saved empty or under a wrapper's names.
    """
    if why := _not_plain(source):
        raise NotInFiles(f"{source.name} is {why}, whose change cannot be read from its files alone")
    stored = stored_tensors(source.local(), adapter=True)
    checkpoints.check_whole(stored, source.name)
    check_patterns(source, [f"model.{key.removesuffix('.weight')}" for key in base])
    if unread := passed_over(source, stored):
        raise NotInFiles(
            f"{source.name} holds {len(unread)} tensors that its adapter_config.json does not ask for ({unread[0]})"
        )
    halves: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, StoredTensor] = {}
    whole: dict[str, Reader] = {}
    for name, tensor in stored.items():
        if loaded_by_peft(name) is None:
            continue
        path, mark, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if not mark:
            whole |= _whole(name, tensor, base)
        elif part == "B.bias":
            biases[path] = tensor
        else:
            halves.setdefault(path, {})[_SIDES[part.removesuffix(".weight")]] = _half(tensor, part)
    factors: dict[str, Factors] = {}
    for module, half in halves.items():
        _check_half(source, module, half)
        scaling = _scaling(source.config, module, half["down"].shape[0])
        factors[f"{key_of(module)}.weight"] = Factors(half["up"] * scaling, half["down"], scaling)
        if module in biases:
            key = f"{key_of(module)}.bias"
            whole[key] = partial(_moved_bias, base.get(key), biases[module], scaling)
    if absent := [key for key in factors if key not in base]:
        raise NotInFiles(
            f"{source.name} changes {len(absent)} modules that are named otherwise in the base's files ({absent[0]})"
        )
    if lacking := _lacking(source, base, set(factors), set(whole)):
        raise NotInFiles(f"{source.name} lacks tensors that its adapter_config.json asks for ({lacking})")
    return factors, whole


def _check_half(source: Source, module: str, half: Mapping[str, Tensor]) -> None:
    """Raises NotInFiles for factors that PEFT could not put on, or would put on otherwise than they are."""
    from peft.utils.other import get_pattern_key

    if len(half) < 2:
        raise NotInFiles(f"{source.name} holds one factor of the LoRA at {module} and not the other")
    if any(factor.ndim != 2 for factor in half.values()):
        raise NotInFiles(f"{source.name} holds factors of the LoRA at {module} that are no matrices")
    patterns = source.config.get("rank_pattern") or {}
    try:
        rank = patterns.get(get_pattern_key(patterns.keys(), module), source.config.get("r"))
    except (AttributeError, re.error):
        return  # PEFT says what is wrong with it
    down, up = half["down"].shape[0], half["up"].shape[-1]
    if not down == up == rank:
        said = f"where its adapter_config.json says {rank}"
        raise NotInFiles(f"{source.name} holds factors of rank {down} and {up} at {module}, {said}")


def _lacking(source: Source, base: Mapping[str, Reader], factors: set[str], whole: set[str]) -> str | None:
    """The first module that the config names and the files lack; None where it names modules by a pattern."""
    config = source.config
    if config.get("lora_bias") and not any(key.endswith(".bias") for key in whole):
        return "biases of lora_bias"
    whole_modules = config.get("modules_to_save")
    for saved in whole_modules if isinstance(whole_modules, list) else []:
        if not any(f".{saved}." in f".{key}" for key in whole):
            return str(saved)
    if not isinstance(config.get("target_modules"), list):
        return None
    for key in base:
        module = key.removesuffix(".weight")
        if module == key or key in factors or key.startswith(f"{UNLOADED}.") or "experts" in module:
            continue
        if is_targeted(config, f"model.{module}"):
            return module
    return None


def _not_plain(source: Source) -> str | None:
    config = source.config
    if checkpoints.is_pickle_only(source.files, adapter=True):
        return "an adapter stored as pickle"
    if (kind := config.get("peft_type")) != "LORA":
        return f"a {kind} adapter"
    for setting, what in _NOT_PLAIN.items():
        if config.get(setting):
            return what
    how = str(config.get("init_lora_weights", ""))
    return f"a LoRA initialised as {how}" if how.lower().startswith(_NOT_ADDITIVE) else None


def _whole(name: str, tensor: StoredTensor, base: Mapping[str, Reader]) -> dict[str, Reader]:
    """A tensor that takes the place of the base's. Beside an adapted embedding PEFT stores the base's own."""
    path = name.removeprefix("base_model.model.")
    key = key_of(path.replace(".base_layer.", "."))
    if path.endswith(".base_layer.weight"):
        if key in base and not torch.equal(base[key]().float(), _read(tensor).float()):
            raise NotInFiles(f"The adapter brings its own {key} of the base, under a LoRA on it")
        return {}
    return {key: partial(_read, tensor)}


def _half(tensor: StoredTensor, part: str) -> Tensor:
    values = _read(tensor).float()
    return values.T if part.startswith("embedding") else values


def _moved_bias(base: Reader | None, change: StoredTensor, scaling: float) -> Tensor:
    """The bias acting with ``lora_bias``; the base's is 0 where it has none."""
    moved = _read(change).float() * scaling
    return moved if base is None else base().float() + moved


def _read(stored: StoredTensor) -> Tensor:
    # opened anew each time: the pages of a memory map count as ours until it is closed
    with opened(stored.file) as file:
        return file.get_tensor(stored.name)


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rslora; the rank is the factors' own (EVA spreads it unevenly)."""
    from peft.utils.other import get_pattern_key

    patterns, usual = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    try:
        alpha = patterns.get(get_pattern_key(patterns.keys(), module), usual)
    except (AttributeError, re.error) as error:
        raise UserError(
            f"alpha_pattern in adapter_config.json is no table of patterns ({error}): save it again."
        ) from error
    if not isinstance(alpha, int | float) or not -_LARGEST < alpha < _LARGEST:
        raise UserError(f"adapter_config.json gives {module} the alpha {alpha!r}, which is no number: save it again.")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
