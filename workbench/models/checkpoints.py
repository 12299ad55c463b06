"""What lies in a checkpoint folder, read from names and headers only: no weight is loaded here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.errors import UserError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}; check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download or save the checkpoint again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, an object was expected.")
    return content


def listing(folder: Path) -> tuple[str, ...]:
    """Names of the files directly in ``folder``, sorted."""
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_file()))


def found(names: Iterable[str], most: int = 8) -> str:
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
    safe = (ADAPTER_WEIGHTS,) if adapter else (WEIGHTS, INDEX)
    return not any(name in names for name in safe) and bool(pickles(names))


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
    if expected in names or (not adapter and INDEX in names):
        return
    if gguf := [name for name in names if name.endswith(".gguf")]:
        raise UserError(f"{where} holds {gguf[0]}: GGUF cannot be instrumented here; give the safetensors {what}.")
    raise UserError(f"{where} has no {what} weights: {expected} was expected, {found(names)}.")


def weight_files(folder: Path, *, adapter: bool = False) -> list[Path]:
    """The safetensors files a loader would read. Raises UserError when a shard of the index is missing."""
    if adapter:
        return [folder / ADAPTER_WEIGHTS]
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{folder / INDEX} has no 'weight_map'; download or save the checkpoint again.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if not (folder / shard).is_file():
            raise UserError(f"{folder} misses the shard {shard} that its index names; finish the download.")
    return [folder / shard for shard in shards]


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
