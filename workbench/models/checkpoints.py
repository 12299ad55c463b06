"""What lies in a checkpoint folder, read from names and headers only: no weight is loaded here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.errors import UserError
from workbench.files import file_text

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_VARIANT = re.compile(r"^model\.(?:safetensors\.index\.)?(?P<variant>[^.]+)\.(?:safetensors|json)$")
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "module": "DataParallel or DeepSpeed",
}
_NAMED_FACTOR = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)\.(?P<adapter>[^.]+)(?:\.(?:weight|bias))?$")
_OUTER = ("base_model", "model")
"""What a wrapper's ``module`` may stand behind; elsewhere it is a model's own name."""
_PACKED = (
    "weight_scale_inv", "weight_scale", "weight_packed", "qweight", "qzeros", "absmax", "_blocks", "SCB", "W_q",
    "int_weight", "qdata",
)  # fmt: skip
_WHOLE_NUMBERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_TRAINER_STATE = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "trainer_state")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, as its header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises UserError when it is missing, malformed or no object."""
    try:
        content = json.loads(file_text(path))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}; check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download or save the checkpoint again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, an object was expected.")
    return content


def listing(folder: Path) -> tuple[str, ...]:
    """Names of the files directly in ``folder``, sorted."""
    with os.scandir(folder) as entries:  # asks the disk once
        return tuple(sorted(entry.name for entry in entries if entry.is_file()))


def names_found(names: Iterable[str], most: int = 8) -> str:
    """``names`` as a phrase for an error message: 'found a, b' or 'it is empty'."""
    listed = sorted(names)
    if not listed:
        return "it is empty"
    more = f", … ({len(listed)} in all)" if len(listed) > most else ""
    return f"found {', '.join(listed[:most])}{more}"


def pickles(names: Iterable[str]) -> list[str]:
    """Names that are pickled weights; a trainer's own state files do not count."""
    return [
        name for name in names if PurePosixPath(name).suffix in _PICKLE_SUFFIXES and not name.startswith(_TRAINER_STATE)
    ]


def is_pickle_only(names: Sequence[str], *, adapter: bool) -> bool:
    """Whether the weights named here can be had only by unpickling."""
    safe = any(name in names for name in ((ADAPTER_WEIGHTS,) if adapter else (WEIGHTS, INDEX)))
    return not (safe or (not adapter and variant_of(names))) and bool(pickles(names))


def variant_of(names: Iterable[str]) -> str | None:
    """The variant (``fp16`` of ``model.fp16.safetensors``) that a loader must be told, of names without a plain model.

    Raises UserError when there are several.
    """
    listed = set(names)
    if WEIGHTS in listed or INDEX in listed:
        return None
    matches = (_VARIANT.match(name) for name in listed)
    variants = sorted({match["variant"] for match in matches if match and "-of-" not in match["variant"]})
    if len(variants) > 1:
        raise UserError(
            f"The folder holds the variants {', '.join(variants)} of its weights and no {WEIGHTS}; keep the one you "
            "want in a folder of its own."
        )
    return variants[0] if variants else None


def check_weights_listed(names: Sequence[str], where: str, *, adapter: bool, allow_pickle: bool) -> None:
    """Raises UserError unless ``names`` include weights that may be loaded."""
    what = "adapter" if adapter else "model"
    if is_pickle_only(names, adapter=adapter):
        if allow_pickle:
            return
        raise UserError(
            f"{where} holds its weights only as pickle ({pickles(names)[0]}), and unpickling can run code: "
            "save it as safetensors, or pass allow_pickle=True (--allow-pickle) if you trust its author."
        )
    expected = ADAPTER_WEIGHTS if adapter else WEIGHTS
    if expected in names or (not adapter and (INDEX in names or variant_of(names))):
        return
    if gguf := [name for name in names if name.endswith(".gguf")]:
        raise UserError(f"{where} has no safetensors {what} but the file {gguf[0]}: give {where}/{gguf[0]} itself.")
    raise UserError(f"{where} has no {what} weights: {expected} was expected, {names_found(names)}.")


def weight_files(folder: Path, *, adapter: bool = False) -> list[Path]:
    """The safetensors files that transformers' (or PEFT's) loader reads: one whole file before an index of shards.

    Raises UserError when a shard of the index is missing.
    """
    if adapter:
        return [folder / ADAPTER_WEIGHTS]
    variant = variant_of(listing(folder))
    whole = folder / (f"model.{variant}.safetensors" if variant else WEIGHTS)
    index = folder / (f"{INDEX.removesuffix('json')}{variant}.json" if variant else INDEX)
    if whole.is_file() or not index.is_file():
        return [whole]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no 'weight_map' or an empty one; download or save the checkpoint again.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if not (folder / shard).is_file():
            raise UserError(f"{folder} misses the shard {shard} that its index names; finish the download.")
    return [folder / shard for shard in shards]


def check_whole(tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Raises UserError for tensors that were saved empty, or under the names of a wrapper that no loader undoes."""
    empty = [name for name, tensor in tensors.items() if _is_empty(tensor)]
    if empty:
        shape = list(tensors[empty[0]].shape)
        raise UserError(
            f"{where} holds {len(empty)} empty tensors ({empty[0]}, shape {shape}): it was saved under DeepSpeed "
            "ZeRO-3 or FSDP without gathering the shards; gather them when saving "
            "(stage3_gather_16bit_weights_on_model_save, "
            "or zero_to_fp32.py on the training checkpoint) and give that."
        )
    for name in tensors:
        if (wrapper := _wrapper_in(name)) is not None:
            raise UserError(
                f"The tensors of {where} carry the prefix {wrapper!r} of {_WRAPPERS[wrapper]} ({name}), which loading "
                "does not undo: save the model from inside the wrapper again, or rename its tensors without it."
            )
        if factor := _NAMED_FACTOR.search(name):
            if factor["adapter"] not in ("weight", "bias"):
                raise UserError(
                    f"The tensors of {where} carry the adapter's name {factor['adapter']!r} ({name}), as a state dict "
                    "does: save the adapter with PEFT's save_pretrained and give that."
                )


def _is_empty(tensor: StoredTensor) -> bool:
    return tensor.shape == (0,) or (0 in tensor.shape and tensor.name.endswith((".weight", ".bias")))


def packed_tensor(tensors: Mapping[str, StoredTensor]) -> str | None:
    """The first tensor that stands for weights only together with others: codes or scales of a quantization."""
    for name, tensor in tensors.items():
        if name.endswith(_PACKED) or (name.endswith(".weight") and tensor.dtype in _WHOLE_NUMBERS):
            return name
    return None


def check_unpacked(tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Raises UserError for quantized weights; for a model whose config does not tell how they are to be read."""
    if (packed := packed_tensor(tensors)) is not None:
        raise UserError(
            f"{where} holds quantized weights ({packed}) and its config.json has no quantization_config, so they would "
            "be read as numbers that they do not stand for: put the config they were saved with beside them."
        )


def check_depth(config: Mapping[str, Any], tensors: Collection[str], where: str) -> None:
    """Raises UserError for a config of more layers than there are stored tensors: building them could fill memory."""
    inner = config.get("text_config")
    layers = (inner if isinstance(inner, Mapping) else config).get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(tensors) > 0:
        raise UserError(
            f"{where}'s config.json says {layers} layers and its files hold {len(tensors)} tensors: put the config and "
            "the weights of one model together."
        )


def lacking(where: str, missing: Sequence[str]) -> str:
    """The sentence for a checkpoint without weights that its config asks for."""
    return (
        f"{where} lacks {len(missing)} weights its config asks for ({missing[0]}), which would be random: save the "
        "checkpoint again, with the config it was trained with."
    )


def other_shape(name: str, stored: Sequence[int], wanted: Sequence[int]) -> str:
    """The sentence for a stored weight of another shape than the config gives it."""
    return (
        f"{name} is {list(stored)} in the files and {list(wanted)} by its config.json; put the config and the weights "
        "of one model together."
    )


def _wrapper_in(name: str) -> str | None:
    parts = name.split(".")
    outer = next((place for place, part in enumerate(parts) if part not in _OUTER), 0)
    return next((part for i, part in enumerate(parts) if part in _WRAPPERS and (part != "module" or i <= outer)), None)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped. Raises UserError when it is damaged or cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download or save it again.") from error
    with handle as file:
        yield file


def stored_tensors(folder: Path, *, adapter: bool = False) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in ``folder`` by name, from the files' headers."""
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder, adapter=adapter):
        with opened(path) as file:
            for name in file.keys():
                view = file.get_slice(name)
                tensors[name] = StoredTensor(name, str(view.get_dtype()), tuple(view.get_shape()), path)
    return tensors


def doubled_tensors(folder: Path) -> dict[str, list[str]]:
    """Tensor -> the shards that hold it, of those that stand in more than one; the loader takes the last one's."""
    places: dict[str, list[str]] = {}
    files = weight_files(folder)
    for path in files if len(files) > 1 else []:
        with opened(path) as file:
            for name in file.keys():
                places.setdefault(name, []).append(path.name)
    return {name: shards for name, shards in places.items() if len(shards) > 1}


def about_doubled(folder: Path, where: str) -> tuple[str, ...]:
    """A sentence where a tensor stands in several shards."""
    doubled = doubled_tensors(folder)
    if not doubled:
        return ()
    name, shards = next(iter(doubled.items()))
    return (
        f"{where} holds {len(doubled)} tensors in more than one of its shards ({name} in {', '.join(shards)}): the "
        f"one of the last shard ({shards[-1]}) is read, as transformers does.",
    )
