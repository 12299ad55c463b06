"""Whether an adapter belongs on a base: every stored tensor against the module it would sit on, from headers.

PEFT ignores tensors for modules the base lacks and fails cryptically on other shapes; this says which module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from workbench.errors import UserError
from workbench.models import checkpoints
from workbench.models.sources import Source

_ROOT = "base_model.model."
_TOKEN_PARTS = ("token_adapter", "trainable_tokens")
_CACHE_NAME = re.compile(r"models--(.+?)/snapshots/")
# PEFT renames and fuses these itself when it loads an adapter saved before transformers fused the experts
_CONVERTED = re.compile(r"(^|\.)(experts|block_sparse_moe)(\.|$)")


@dataclass(frozen=True)
class _Part:
    """One stored tensor: the module it sits on, what it is there, and its shape."""

    module: str
    role: str
    shape: tuple[int, ...]


def check_fit(adapter: Source, base: Any, base_name: str) -> tuple[str, ...]:
    """Check the stored adapter ``adapter`` against the loaded model ``base``; returns :func:`name_notes`.

    Raises UserError naming the first module the base lacks or has in other widths, with both shapes.
    """
    origin = f"; it was trained on {adapter.base_name!r}" if adapter.base_name else ""
    modules = dict(base.named_modules())
    if not checkpoints.is_pickle_only(adapter.files, adapter=True):
        stored = checkpoints.stored_tensors(adapter.local(), adapter=True)
        checkpoints.check_whole(stored, adapter.name)
        parts = list(_parts(adapter, stored))
        absent = sorted({p.module for p in parts if p.module not in modules and not _CONVERTED.search(p.module)})
        if absent:
            raise UserError(
                f"The adapter {adapter.name} does not fit {base_name}: {len(absent)} of its modules are not "
                f"in the base ({absent[0]}){origin}. Give the base it was trained on."
            )
        for part in parts:
            if problem := _misfit(part, modules.get(part.module)):
                raise UserError(
                    f"The adapter {adapter.name} does not fit {base_name}: {problem}{origin}. Give its own base."
                )
    return name_notes(adapter, base_name)


def name_notes(adapter: Source, base_name: str) -> tuple[str, ...]:
    """A sentence for people when an adapter that fits ``base_name`` says it was trained on another base."""
    if adapter.base_name is None or same_name(adapter.base_name, base_name):
        return ()
    return (f"The adapter says it was trained on {adapter.base_name!r}; its shapes fit {base_name!r}, used here.",)


def same_name(name: str, other: str) -> bool:
    """Whether two base names mean one model: equal last parts of path or hub id, cache folders undone."""
    return _last_part(name) == _last_part(other)


def _last_part(name: str) -> str:
    if cached := _CACHE_NAME.search(name):
        name = cached[1].replace("--", "/")
    return name.rstrip("/").rpartition("/")[2].lower()


def loaded_by_peft(name: str) -> str | None:
    """A stored tensor's name as PEFT reads it; None of one that PEFT passes over.

    After ``resize_token_embeddings`` PEFT saves an embedding in ``modules_to_save`` three times (the base's own as
    ``original_module``, the trained one under its wrapper's name and under its own) and reads the last.
    """
    return None if ".original_module." in name or ".modules_to_save." in name else name


def _parts(adapter: Source, stored: Mapping[str, checkpoints.StoredTensor]) -> Iterator[_Part]:
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[adapter.config["peft_type"]]
    for name, tensor in stored.items():
        if not name.startswith(_ROOT) or loaded_by_peft(name) is None:
            continue  # the others are shared by all modules (VeRA's projections, a vector bank)
        names = name.removeprefix(_ROOT).split(".")
        own = [i for i, part in enumerate(names) if part.startswith((prefix, *_TOKEN_PARTS))]
        cut = own[0] if own else len(names) - 1
        module = ".".join(part for part in names[:cut] if part != "base_layer")
        if module:
            yield _Part(module, names[cut], tensor.shape)


def widths(module: nn.Module | None) -> tuple[int, int] | None:
    """(out, in) of a linear map, (tokens, width) of an embedding, quantized or not; else None."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    out, into = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (out, into) if isinstance(out, int) and isinstance(into, int) else None


def _misfit(part: _Part, module: nn.Module | None) -> str | None:
    """What is wrong with ``part`` on ``module``, in words; None when it fits or the header cannot tell."""
    size, shape = widths(module), list(part.shape)
    where = f"{part.module}.{part.role} is {shape} in the adapter"
    own = getattr(module, part.role, None)
    if own is not None and hasattr(own, "shape") and own.dtype.is_floating_point:
        if list(own.shape) == shape:
            return None
        return f"{where} and {list(own.shape)} in the base{_resized(part.module)}"
    if size is None or part.role not in _EXPECTED:
        return None
    axis, of = _EXPECTED[part.role]
    if shape[axis] == size[of]:
        return None
    return f"{where} and the base's weight there is {list(size)}"


# role -> (axis of the stored tensor, axis of the base's (out, in)) that must agree
_EXPECTED: dict[str, tuple[int, int]] = {
    "lora_A": (1, 1),
    "lora_B": (0, 0),
    "lora_embedding_A": (1, 0),
    "lora_embedding_B": (0, 1),
    "lora_magnitude_vector": (0, 0),
}


def _resized(name: str) -> str:
    if not name.endswith(("lm_head", "embed_tokens", "wte", "embed_in", "embed_out", "word_embeddings")):
        return ""
    return " (tokens were added in tuning: call resize_token_embeddings on the loaded base and give that)"
