"""What a model is, as hashes of its content: weights, adapter, tokenizer. Nothing is told apart by a name."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.errors import NotSupported, UserError
from workbench.models import checkpoints
from workbench.models.adapter_fit import loaded_by_peft
from workbench.models.adapter_layers import acting_adapters, base_tensors, own_scaling
from workbench.models.digests import combined, digest, hash_text
from workbench.models.quantized import quantized_parts
from workbench.models.sources import Source, describe
from workbench.models.stored_model import StoredModel
from workbench.models.stored_names import as_saved
from workbench.prompts.prompt_rows import rows_of
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


def identify_stored(weights: StoredModel, tokenizer: Any = None) -> ModelIdentity:
    """The identity that a stored model has once loaded in the dtype it is stored in, from its files alone.

    What has been read of it for something else is not read again. See :func:`weights_hash` for when files and a
    loaded model agree.
    """
    return ModelIdentity(
        name=weights.source.name,
        revision=weights.source.revision,
        weights=combined(weights.saved_digests()),
        adapter=None,
        tokenizer=tokenizer_hash(tokenizer) if tokenizer is not None else None,
        dtype=str(weights.digests.dtype).removeprefix("torch."),
    )


def with_adapter(base: ModelIdentity, adapter: Source, tokenizer: Any = None) -> ModelIdentity:
    """The identity of ``base`` with the stored ``adapter`` on it."""
    words = tokenizer_hash(tokenizer) if tokenizer is not None else base.tokenizer
    digest = adapter_hash(adapter.local())
    return replace(base, name=adapter.name, revision=adapter.revision, adapter=digest, tokenizer=words)


def weights_hash(model: Any) -> str:
    """Sha256 over name, dtype, shape and bytes of every weight, in the order of the names, tied weights once.

    ``model`` is a loaded model (adapters on it do not count) or a checkpoint folder, which is read tensor by
    tensor. Both agree when every weight is loaded in its stored dtype: experts fused while loading are hashed one by
    one, as ``save_pretrained`` writes them, however the folder has them, and what loading does not read (old buffers,
    a tied weight's second copy) does not count. Quantized weights are hashed as they lie in the loaded model, which a
    folder cannot tell. Raises NotSupported when weights are offloaded.
    """
    if isinstance(model, str | Path):
        return combined(StoredModel(describe(model)).saved_digests())
    named = list(base_tensors(model))
    if absent := [name for name, tensor in named if tensor.device.type == "meta"]:
        raise NotSupported(f"{len(absent)} weights are offloaded ({absent[0]}); hash the checkpoint folder instead.")
    with ThreadPoolExecutor(_WORKERS) as pool:  # hashlib releases the interpreter's lock
        stored = as_saved(model, named) | dict(quantized_parts(model))
        return combined(pool.map(lambda item: (item[0], digest(item[1])), stored.items()))


def adapter_hash(adapter: Any, name: str | None = None) -> str:
    """Sha256 of an adapter's weights and settings; ``adapter`` is a ``PeftModel`` or an adapter folder.

    Weights are hashed in float32, in which PEFT holds an adapter stored in half precision, so a folder and
    the adapter loaded from it agree. Scalings set afterwards (PEFT's ``set_scale``) count. ``name`` picks one of
    several adapters, by default the active ones.
    """
    if isinstance(adapter, str | Path):
        return _adapter_hash(_stored_settings(Path(adapter)), _stored_adapter(Path(adapter)))
    from peft.utils import get_peft_model_state_dict

    odd = {} if name is not None else _odd_layers(adapter)
    names = [name] if name is not None else list(adapter.active_adapters)
    names += sorted({label for acting in odd.values() for label in acting} - set(names))
    parts = [
        _adapter_hash(
            adapter.peft_config[name].to_dict() | _rescaled(adapter, name),
            get_peft_model_state_dict(adapter, adapter_name=name, save_embedding_layers=False),
        )
        for name in names
    ]
    parts += [json.dumps(odd, sort_keys=True)] if odd else []
    return parts[0] if len(parts) == 1 else hash_text("\n".join(parts))


def _odd_layers(model: Any) -> dict[str, list[str]]:
    """Layers in which other adapters act than the model's active ones (PEFT switches single layers too)."""
    odd = {}
    for path, layer in model.named_modules():
        if hasattr(layer, "_get_available_adapters") and hasattr(layer, "active_adapters") and layer is not model:
            acting, own = acting_adapters(layer), layer._get_available_adapters()
            if acting != [active_adapter for active_adapter in model.active_adapters if active_adapter in own]:
                odd[path] = acting
    return odd


def _rescaled(model: Any, adapter: str) -> dict[str, Any]:
    """The scalings of an adapter that differ from what its settings say, as a setting of its own; mostly none."""
    scales = {}
    for path, layer in model.named_modules():
        scalings = getattr(layer, "scaling", None)
        if isinstance(scalings, dict) and adapter in scalings:
            own = own_scaling(layer, adapter)
            if own is not None and not math.isclose(own, scalings[adapter], rel_tol=1e-9):
                scales[path] = float(scalings[adapter])
    return {"scaling": scales} if scales else {}


def _stored_settings(folder: Path) -> dict[str, Any]:
    """As PEFT reads them: what an older version did not save has its default."""
    from peft import PeftConfig

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings of a newer version, which PEFT leaves out as it loads
            return PeftConfig.from_pretrained(str(folder)).to_dict()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"PEFT cannot read the settings in {folder / 'adapter_config.json'}: {error}") from error


def _stored_adapter(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in checkpoints.weight_files(folder, adapter=True):
        with checkpoints.opened(path) as file:
            # beside an adapted embedding PEFT saves the base's own weight
            own = [name for name in file.keys() if not name.endswith(".base_layer.weight") and loaded_by_peft(name)]
            tensors.update({name: file.get_tensor(name) for name in own})
    return tensors


def _adapter_hash(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    settings = {key: _plain(value) for key, value in config.items() if key not in _INCIDENTAL and value is not None}
    half = (torch.float16, torch.bfloat16)
    digests = [(key, digest(t.float() if t.dtype in half else t)) for key, t in tensors.items()]
    return hash_text(json.dumps(settings, sort_keys=True) + combined(digests))


def _plain(value: Any) -> Any:
    """``value`` in a form whose JSON does not depend on the order of a set or on an enum's class."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return sorted(map(str, value)) if all(isinstance(item, str) for item in value) else [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
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
    if (rows := rows_of(tokenizer)) is not None:
        content.append(asdict(rows))
    return hash_text(json.dumps(content, sort_keys=True))
