"""GGUF files (llama.cpp's format) as models: what a file's header says, before anything of it is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import NotSupported, UserError

SUFFIX = ".gguf"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
PLAIN_TYPES = ("F32", "F16", "BF16", "F64")
"""GGUF types that hold floating-point numbers as they are."""
STORED_AS = "stored_as"
"""Key of the quantization's name (``Q4_1``) in the ``quantization_config`` of a GGUF source's config."""


def read_config(file: Path) -> dict[str, Any]:
    """The Hugging Face config of the model in ``file``, with its quantization as ``quantization_config``.

    Raises UserError for a file that is damaged, cut short or one part of several, and NotSupported for a LoRA, a
    control vector or an architecture that transformers cannot read from GGUF.
    """
    from transformers import AutoConfig

    if _PART.search(file.name):
        raise NotSupported(
            f"{file.name} is one part of a split GGUF: merge the parts (llama-gguf-split --merge {file.name} "
            "whole.gguf) and give the whole file."
        )
    facts, types = _header(file)
    _check_kind(file, facts)
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError, OSError, AttributeError) as error:
        from transformers import __version__ as version

        architecture = facts.get("general.architecture", "unnamed")
        raise NotSupported(
            f"transformers {version} cannot read the architecture {architecture!r} from GGUF ({file}); give the "
            "model's safetensors folder."
        ) from error
    return {**config.to_dict(), "quantization_config": {"quant_method": "gguf", STORED_AS: _stored_as(types)}}


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether the GGUF source with this ``config`` holds blocks of integers rather than floating-point numbers."""
    return config["quantization_config"][STORED_AS] not in PLAIN_TYPES


def as_dense(model: Any) -> Any:
    """``model``, loaded from GGUF and unpacked, without the marks of its quantization: it can be saved and trained."""
    model.config._name_or_path = model.name_or_path = ""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if mark in vars(model):
            delattr(model, mark)
    return model


def _header(file: Path) -> tuple[dict[str, Any], Counter[str]]:
    """Short fields by name, and how many matrices are stored in each type."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        facts = {name: field.contents() for name, field in reader.fields.items() if len(field.data) <= 1}
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, OSError) as error:
        raise UserError(
            f"{file} is no whole GGUF file ({_cause(file, error)}); download it again, to its full length."
        ) from error
    return facts, types


def _cause(file: Path, error: Exception) -> str:
    size = file.stat().st_size
    if size == 0:
        return "it is empty"
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            return "it does not begin with GGUF"
    return f"it ends after {size} bytes" if isinstance(error, ValueError | IndexError) else str(error).splitlines()[0]


def _check_kind(file: Path, facts: Mapping[str, Any]) -> None:
    if int(facts.get("split.count", 1)) > 1:
        raise NotSupported(f"{file} is one of {facts['split.count']} parts of a GGUF; merge them into one file.")
    kind = str(facts.get("general.type", "model"))
    if kind == "adapter" or "adapter.type" in facts:
        raise NotSupported(f"{file} is a LoRA in GGUF, which is not read here; give the PEFT adapter's folder.")
    if facts.get("general.architecture") == "controlvector":
        raise NotSupported(f"{file} is a control vector, not a model; give it as a recipe (tunescope steer --recipe).")
    if kind not in ("model", "merge"):
        raise NotSupported(f"{file} holds a GGUF of type {kind!r}; a language model was expected.")


def _stored_as(types: Counter[str]) -> str:
    """The type most matrices have; a quantized one where there is any."""
    packed = {name: count for name, count in types.items() if name not in PLAIN_TYPES}
    counted = packed or dict(types) or {"F32": 1}
    return max(counted, key=lambda name: counted[name])
