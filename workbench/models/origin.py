"""Where a pair was loaded from, so that another process can load the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.models.sources import Source

if TYPE_CHECKING:
    from workbench.models.adapted import AdaptedModel

_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Origin:
    """Folders or hub ids (with revision), and the options they were loaded with."""

    base: str
    tuned: str | None
    """None of a single model."""
    options: Mapping[str, Any] = field(default_factory=dict)


def origin_of(sources: list[Source], **options: Any) -> Origin | None:
    """The origin of models from ``sources`` (base, tuned); None when one of them was given loaded."""
    names = [_address(source) for source in sources]
    if any(name is None for name in names):
        return None
    flags = {"allow_pickle": sources[0].allow_pickle, "trust_remote_code": sources[0].trust_remote_code}
    changed = {name: value for name, value in {**flags, **options}.items() if value not in (None, False)}
    return Origin(str(names[0]), None if len(names) == 1 else str(names[1]), changed)


def _address(source: Source) -> str | None:
    if source.model is not None:
        return None
    if source.folder is not None:
        return str(Path(source.folder, source.gguf or "").absolute())
    return source.name if source.revision is None else f"{source.name}@{source.revision}"


def fingerprint(model: AdaptedModel) -> str:
    """A hash of the sums of all parameters' bits: equal for equal weights on any device, at the price of one read.

    It tells whether two processes hold the same weights; it is no content hash (see :mod:`workbench.models.identity`).
    """
    sums = []
    with torch.no_grad():
        for name, parameter in sorted(model.hf.named_parameters()):
            if parameter.device.type != "meta":
                bits = parameter.detach().contiguous().view(_AS_INTEGERS[parameter.element_size()])
                sums.append(f"{name} {list(parameter.shape)} {int(bits.sum(dtype=torch.int64))}")
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
