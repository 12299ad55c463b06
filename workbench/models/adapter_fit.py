"""Whether an adapter belongs on a base: every stored tensor against the module it would sit on, from headers.

PEFT ignores tensors for modules the base lacks and fails cryptically on other shapes; this says which module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import nn

from workbench.bounded import matching
from workbench.errors import UserError
from workbench.models import checkpoints
from workbench.models.sources import Source

_ROOT = "base_model.model."
_TOKEN_PARTS = ("token_adapter", "trainable_tokens")
_CACHE_NAME = re.compile(r"models--(.+?)/snapshots/")
_CHOICES = (
    "target_modules", "exclude_modules", "modules_to_save", "target_parameters", "layers_to_transform",
    "layers_pattern",
)  # fmt: skip
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "target_parameters")
_BY_PATTERN = ("rank_pattern", "alpha_pattern")
_PLAIN_NAME = re.compile(r"[\w.\-]*")
_MORE_MODULES = ("target_parameters", "ensure_weight_tying", "layer_replication")
"""Settings by which PEFT adapts modules that ``target_modules`` does not name."""
_FOLDED = ("use_bdlora", "use_qalora")
"""Settings by which the factors have other widths than the base's weight."""
_LORA_PART = re.compile(r"(embedding_)?[AB](\.|$)")
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
        folded = any(adapter.config.get(name) for name in _FOLDED)
        for part in [] if folded else parts:
            if problem := _misfit(part, modules.get(part.module)):
                raise UserError(
                    f"The adapter {adapter.name} does not fit {base_name}: {problem}{origin}. Give its own base."
                )
    return name_notes(adapter, base_name)


def check_patterns(adapter: Source, modules: list[str]) -> None:
    """Raises UserError where regular expressions of the adapter do not come to an end on the names of ``modules``."""
    values = [adapter.config.get(name) for name in _PATTERNS]
    values += [list(table) for name in _BY_PATTERN if isinstance(table := adapter.config.get(name), dict)]
    flat = [text for value in values for text in (value if isinstance(value, list) else [value])]
    texts = [text for text in flat if isinstance(text, str)]
    patterns = [text for text in texts if not _PLAIN_NAME.fullmatch(text)]
    if patterns and matching(patterns, modules) != "fine":
        raise UserError(
            f"{adapter.name} names its modules by a regular expression ({patterns[0][:60]!r}) that does not come to an "
            "end: write the names in adapter_config.json, or use another adapter."
        )


def unread_notes(adapter: Source) -> tuple[str, ...]:
    """A sentence for people where PEFT leaves tensors of the adapter out."""
    if checkpoints.is_pickle_only(adapter.files, adapter=True):
        return ()
    unread = passed_over(adapter, checkpoints.stored_tensors(adapter.local(), adapter=True))
    if not unread:
        return ()
    return (
        f"{len(unread)} tensors of the adapter {adapter.name} are not asked for by its adapter_config.json "
        f"({unread[0]}): PEFT leaves them out, and they change nothing.",
    )


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


def passed_over(adapter: Source, stored: Iterable[str]) -> list[str]:
    """Stored tensors that PEFT does not read, as the adapter's config does not ask for them: they change nothing.

    Those are names without PEFT's prefix, modules that the config does not target, and parts of a LoRA that it has not
    (magnitudes without DoRA). What a config of wrong types means is left to PEFT.
    """
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[adapter.config["peft_type"]]
    unread = []
    for name in stored:
        if loaded_by_peft(name) is None:
            continue
        if not name.startswith("base_model."):
            unread.append(name)
            continue
        module, mark, part = name.removeprefix(_ROOT).partition(f".{prefix}")
        if not mark or module == _ROOT.split(".")[0]:
            continue  # whole weights, and what all modules share (a vector bank)
        if module.startswith("base_model.") or not (_is_targeted(adapter, module) and _is_part(adapter, part)):
            unread.append(name)
    return unread


def is_targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether an adapter's config asks for ``module``, by PEFT's own rule; True where its types are wrong."""
    from peft.tuners.tuners_utils import check_target_module_exists

    named = {name: config.get(name) for name in _CHOICES}
    if named["target_modules"] in (None, "all-linear"):
        return True
    try:
        return bool(check_target_module_exists(SimpleNamespace(**named), module))
    except (TypeError, ValueError, AttributeError, NameError, re.error):
        return True


def _is_targeted(adapter: Source, module: str) -> bool:
    if _CONVERTED.search(module) or any(adapter.config.get(name) for name in _MORE_MODULES):
        return True
    return is_targeted(adapter.config, module.replace(".base_layer", ""))


def _is_part(adapter: Source, part: str) -> bool:
    if adapter.config["peft_type"] != "LORA" or _LORA_PART.match(part):
        return True
    return part.startswith("magnitude_vector") and bool(adapter.config.get("use_dora"))


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
    if part.role == "lora_magnitude_vector" and isinstance(module, nn.Embedding):
        of = 1  # one length for each coordinate of the embedding
    if len(shape) > axis and shape[axis] == size[of]:
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
