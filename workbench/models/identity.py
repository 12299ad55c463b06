"""What a model is, as hashes of its content: weights, adapter, tokenizer. Nothing is told apart by a name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.errors import NotSupported
from workbench.models import checkpoints
from workbench.models.adapters import base_tensors
from workbench.typing import Tensor

_WORKERS = 8
# where the adapter was made and by what, which does not change what it computes
_INCIDENTAL = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "task_type",
}


@dataclass(frozen=True)
class ModelIdentity:
    """A model by content; the name and the revision only say where it was found and are not hashed."""

    name: str
    revision: str | None
    weights: str
    adapter: str | None
    tokenizer: str | None
    dtype: str

    @property
    def hash(self) -> str:
        """Sha256 in hex of what the model computes: equal for equal weights, adapter, tokenizer and dtype."""
        content = [self.weights, self.adapter, self.tokenizer, self.dtype]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_dict(self) -> dict[str, str | None]:
        """Every field and the hash, ready for JSON."""
        return {**asdict(self), "hash": self.hash}


def identify(
    hf: Any,
    tokenizer: Any = None,
    *,
    name: str = "",
    revision: str | None = None,
    adapter: bool = True,
    folder: Path | None = None,
) -> ModelIdentity:
    """The identity of the loaded model ``hf``; with ``adapter=False`` that of the base under its adapter.

    ``folder`` is where its weights are stored: read instead of the model when parts of it are offloaded.
    Reads every weight once.
    """
    is_peft = hasattr(hf, "peft_config") and hasattr(hf, "get_base_model")
    root = hf.get_base_model() if is_peft else hf
    tensors = list(base_tensors(root))
    offloaded = any(tensor.device.type == "meta" for _, tensor in tensors)
    elsewhere = folder is None and revision is not None and all(tensor.device.type == "meta" for _, tensor in tensors)
    return ModelIdentity(
        name=name or str(getattr(root, "name_or_path", "") or type(root).__name__),
        revision=revision or getattr(root.config, "_commit_hash", None),
        # weights that are nowhere here are told apart by the commit they are in
        weights=f"{name}@{revision}"
        if elsewhere
        else weights_hash(folder if offloaded and folder is not None else root),
        adapter=adapter_hash(hf) if is_peft and adapter else None,
        tokenizer=tokenizer_hash(tokenizer) if tokenizer is not None else None,
        dtype=str(root.dtype).removeprefix("torch."),
    )


def weights_hash(model: Any) -> str:
    """Sha256 over name, dtype, shape and bytes of every weight, in the order of the names, tied weights once.

    ``model`` is a loaded model (adapters on it do not count) or a checkpoint folder, which is read tensor by
    tensor. Both agree when the model is loaded in its stored dtype and transformers would save it in the
    checkpoint's layout: experts fused while loading are hashed one by one, as stored. Raises NotSupported
    when weights are offloaded.
    """
    if isinstance(model, str | Path):
        return _combined(_stored_digests(Path(model)))
    named = list(base_tensors(model))
    if absent := [name for name, tensor in named if tensor.device.type == "meta"]:
        raise NotSupported(f"{len(absent)} weights are offloaded ({absent[0]}); hash the checkpoint folder instead.")
    with ThreadPoolExecutor(_WORKERS) as pool:  # hashlib releases the interpreter's lock
        return _combined(pool.map(lambda item: (item[0], _digest(item[1])), _as_stored(model, named)))


def _as_stored(model: Any, named: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Weights under the names and in the pieces in which ``save_pretrained`` writes them; mostly views."""
    from transformers.core_model_loading import revert_weight_conversion

    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(revert_weight_conversion(root, dict(named)).items())


def _stored_digests(folder: Path) -> Iterable[tuple[str, str]]:
    for path in checkpoints.weight_files(folder):
        with checkpoints.opened(path) as file:
            for name in file.keys():
                yield name, _digest(file.get_tensor(name))


def _digest(tensor: Tensor) -> str:
    """Sha256 of one tensor's dtype, shape and bytes."""
    there = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{there.dtype}{list(there.shape)}".encode())
    if there.numel():
        digest.update(there.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _combined(digests: Iterable[tuple[str, str]]) -> str:
    return _hash_text("\n".join(f"{name} {digest}" for name, digest in sorted(digests)))


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def adapter_hash(adapter: Any, name: str | None = None) -> str:
    """Sha256 of an adapter's weights and settings; ``adapter`` is a ``PeftModel`` or an adapter folder.

    Weights are hashed in float32, in which PEFT holds an adapter stored in half precision, so a folder and
    the adapter loaded from it agree. ``name`` picks one of several adapters, by default the active one.
    """
    if isinstance(adapter, str | Path):
        folder = Path(adapter)
        config = checkpoints.read_json(folder / "adapter_config.json")
        return _adapter_hash(config, _stored_adapter(folder))
    from peft.utils import get_peft_model_state_dict

    chosen = [name] if name is not None else list(adapter.active_adapters)
    parts = [
        _adapter_hash(
            adapter.peft_config[one].to_dict(),
            get_peft_model_state_dict(adapter, adapter_name=one, save_embedding_layers=False),
        )
        for one in chosen
    ]
    return parts[0] if len(parts) == 1 else _hash_text("\n".join(parts))


def _stored_adapter(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in checkpoints.weight_files(folder, adapter=True):
        with checkpoints.opened(path) as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def _adapter_hash(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    settings = {key: _plain(value) for key, value in config.items() if key not in _INCIDENTAL and value is not None}
    half = (torch.float16, torch.bfloat16)
    digests = [(key, _digest(t.float() if t.dtype in half else t)) for key, t in tensors.items()]
    return _hash_text(json.dumps(settings, sort_keys=True) + _combined(digests))


def _plain(value: Any) -> Any:
    """``value`` in a form whose JSON does not depend on the order of a set or on an enum's class."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return sorted(map(str, value)) if all(isinstance(one, str) for one in value) else [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if isinstance(value, bool | int | float) else str(getattr(value, "value", value))


def tokenizer_hash(tokenizer: Any) -> str:
    """Sha256 of what a tokenizer does to text: rules, vocabulary, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    else:
        rules = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    content = [rules, special, getattr(tokenizer, "chat_template", None)]
    return _hash_text(json.dumps(content, sort_keys=True))
