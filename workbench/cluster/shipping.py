"""What a worker is sent: Python objects in which our models, and what belongs to them, stand for the worker's own.

Nothing of this is ever written to a file or read from one: bytes go from a process to the workers that it started.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from torch import nn

from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent

PROTOCOL = 4
"""Of pickle: from 5 on arrays can come out read-only."""
Subject = ModelPair | AdaptedModel | None
Address = tuple[str, ...]


class NotShippable(NotSupported):
    """Something that a worker cannot have."""


def models_of(subject: Subject) -> dict[str, AdaptedModel]:
    """The models of a pair, or the one, by role."""
    if subject is None:
        return {}
    return subject.models if isinstance(subject, ModelPair) else {subject.role: subject}


def addresses(subject: Subject) -> dict[int, Address]:
    """Identity in memory -> what it is called in every process that loaded the same subject."""
    places: dict[int, Address] = {}
    for role, model in models_of(subject).items():
        for name, module in model.hf.named_modules():
            places.setdefault(id(module), ("module", role, name))
        places.setdefault(id(model.hub), ("hub", role))
        if model.tokenizer is not None:
            places.setdefault(id(model.tokenizer), ("tokenizer", role))
        places[id(model)] = ("model", role)
    if isinstance(subject, ModelPair):
        places[id(subject)] = ("pair",)
    return places


def packed(thing: Any, places: dict[int, Address]) -> bytes:
    """``thing`` as bytes, whatever it refers to of the subject replaced by its address.

    Args:
        thing: A function, with what it holds.
        places: As :func:`addresses` gives them.

    Raises:
        NotShippable: It holds another model, or something that cannot leave this process.
    """
    from ray import cloudpickle
    from transformers import PreTrainedModel

    class Packer(cloudpickle.CloudPickler):  # type: ignore[misc]
        def persistent_id(self, part: Any) -> Address | None:
            place = places.get(id(part))
            if place is not None:
                return place
            if isinstance(part, AdaptedModel | ModelPair | PreTrainedModel):
                raise NotShippable("this work holds a model that the workers did not load")
            if isinstance(part, nn.Module | type) or not isinstance(part, Progress):
                return None
            return ("silence",)

    buffer = io.BytesIO()
    try:
        Packer(buffer, PROTOCOL).dump(thing)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise NotShippable(f"this work cannot leave its process ({error})") from error
    return buffer.getvalue()


def unpacked(data: bytes, subject: Subject) -> Any:
    """What :func:`packed` made, with this process's models in place."""

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return resolved(pid, subject)

    return Unpacker(io.BytesIO(data)).load()


def resolved(address: Address, subject: Subject) -> Any:
    """What an address stands for."""
    kind, *rest = address
    if kind == "silence":
        return Silent()
    if kind == "pair":
        return subject
    model = models_of(subject)[rest[0]]
    if kind == "module":
        return model.hf.get_submodule(rest[1])
    return {"model": model, "hub": model.hub, "tokenizer": model.tokenizer}[kind]
