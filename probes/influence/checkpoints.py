"""An adapter's earlier states, put in place one after the other; afterwards it is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from workbench.errors import UserError
from workbench.models.pair import ModelPair

WEIGHTS = "adapter_model.safetensors"


def each_checkpoint(pair: ModelPair, checkpoints: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Number and name of every state while it is in place: the checkpoints in order, last the tuned model itself.

    Raises :class:`UserError` where the tuned model is no adapter, or a folder holds other factors than it has.
    """
    if checkpoints and pair.adapter is None:
        raise UserError("Checkpoints are earlier states of an adapter, and the tuned model is none: leave them out.")
    own = {name: factor.detach().clone() for name, factor in _factors(pair).items()} if checkpoints else {}
    try:
        for number, folder in enumerate(checkpoints):
            _put(pair, _stored(Path(folder), own))
            yield number, f"checkpoint-{number}"
    finally:
        _put(pair, own)
    yield len(checkpoints), "tuned"


def state_hash(checkpoints: Sequence[str], number: int) -> str:
    """Sha256 of the factors' file of a checkpoint; "tuned" for the tuned model, whose own hash says what it is."""
    if number == len(checkpoints):
        return "tuned"
    with (Path(checkpoints[number]) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _factors(pair: ModelPair) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in pair.adapter.named_parameters() if ".lora_" in name}


def _stored(folder: Path, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}: give folders of the same adapter.")
    try:
        stored = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}): give a whole checkpoint.") from error
    tensors = {}
    for name, value in own.items():
        key = _plain(name)
        if key not in stored or stored[key].shape != value.shape:
            raise UserError(f"{folder} is of another adapter: it has no {key} of shape {tuple(value.shape)}.")
        tensors[name] = stored[key]
    return tensors


def _plain(name: str) -> str:
    """A parameter's name as PEFT stores it, without the adapter's own name."""
    head, _, tail = name.rpartition(".lora_")
    kind, *_, last = tail.split(".")
    return f"{head}.lora_{kind}.{last}"


@torch.no_grad()
def _put(pair: ModelPair, values: dict[str, torch.Tensor]) -> None:
    factors = _factors(pair) if values else {}
    for name, value in values.items():
        factors[name].copy_(value)
