"""From a described source to a model in evaluation mode and its tokenizer."""

from __future__ import annotations

import copy
import filecmp
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from workbench.errors import NotSupported, UserError, unknown_name
from workbench.models import checkpoints, gguf_files
from workbench.models.causal_only import check_causal
from workbench.models.config_fit import fits_plainly
from workbench.models.quiet import without_bars
from workbench.models.sources import Kind, Source

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float64": torch.float64,
}  # fmt: skip
WRONG_TYPES = (
    TypeError, AttributeError, KeyError, IndexError, ArithmeticError, AssertionError, RecursionError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a config.json whose fields are of a wrong type."""
HOW_COMPUTED: Mapping[str, None] = {"_attn_implementation": None, "_experts_implementation": None}
"""Keys that a config.json may hold and that are left out as it is read: which of several ways to compute the same is
taken, which two sides of a comparison must share and another machine may not have."""
_OF_TOKENIZER = re.compile(r"(merges|vocab|.*token.*|chat_template.*)\.")
"""Files that a tokenizer is read from."""
_SMALL = 10_000_000
"""So many weights are made without asking: what they take is not worth a look at the shapes."""
DeviceMap = str | Mapping[str, Any]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant by ``device``; "auto" is cuda, mps or cpu. Raises UserError when it is absent."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise unknown_name("device", str(device), ["auto", "cpu", "cuda", "cuda:0", "mps"]) from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no device {resolved} on this machine; use device='auto' or 'cpu'.")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("There is no mps device on this machine; use device='auto' or 'cpu'.")
    return resolved


def resolve_dtype(dtype: str | torch.dtype = "auto") -> torch.dtype | str:
    """The torch dtype meant by ``dtype``; "auto" stays "auto": the checkpoint's own."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise unknown_name("dtype", str(dtype), ["auto", *DTYPES])
    return DTYPES[dtype]


def quantization(config: Any) -> str | None:
    """How a model's weights are quantized, in words ("bitsandbytes, 4 bits"); None when they are not.

    ``config`` is a model's config or the mapping read from its ``config.json``.
    """
    details = config.get("quantization_config") if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping):
        details = getattr(config, "quantization_config", None)
    if details is None:
        return None
    if not isinstance(details, Mapping):
        if not hasattr(details, "to_dict"):
            raise UserError("quantization_config in config.json is no object: save the model again.")
        details = details.to_dict()
    method = details.get("quant_method") or "unknown method"
    if gguf_files.STORED_AS in details:
        kind = details[gguf_files.STORED_AS]
        return None if kind in gguf_files.PLAIN_TYPES else f"GGUF {kind}"
    bits = details.get("bits") or (4 if details.get("load_in_4bit") else 8 if details.get("load_in_8bit") else None)
    return f"{getattr(method, 'value', method)}, {bits} bits" if bits else str(getattr(method, "value", method))


def load_model(
    source: Source,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    device_map: DeviceMap | None = None,
    **options: Any,
) -> Any:
    """The whole model of ``source`` as a ``PreTrainedModel`` in evaluation mode.

    ``device_map`` (accelerate's) overrides ``device``; ``options`` go to ``from_pretrained``. A model given
    loaded is returned itself, put in evaluation mode, where and in the dtype it is. GPT-OSS's MXFP4 weights
    are loaded dequantised, as their fused kernels would bypass the experts' hooks; so are compressed-tensors' weights,
    as the values that they stand for. A quantized GGUF file is
    unpacked, into bfloat16 where ``dtype`` is "auto" (float32 keeps its values exactly). Raises UserError when
    files are missing, damaged or do not fit the config.
    """
    if source.kind is Kind.LOADED:
        shown = source.model.config.to_dict() if hasattr(source.model, "config") else {}
        check_causal({**shown, "architectures": [_class_name(source.model)]}, source.name)
        return source.model.eval()
    if source.kind is not Kind.MODEL:
        raise ValueError(f"{source.name} is an adapter: load its base, then attach_adapter")
    check_causal(source.config, source.name)
    place = resolve_device(device) if device_map is None else None
    if place is not None and place.type == "meta":
        return _shape_alone(source, dtype)
    settings: dict[str, Any] = {
        "dtype": resolve_dtype(dtype),
        **HOW_COMPUTED,
        "attn_implementation": attn_implementation,
        "_attn_implementation": attn_implementation,
        # loading straight onto an accelerator never holds the model twice
        "device_map": device_map if place is None or place.type == "cpu" else {"": place},
        "local_files_only": not source.trust_remote_code,
        **source.reading,
        **_weight_settings(source),
        **options,
    }
    if source.gguf is not None and settings["dtype"] == "auto" and gguf_files.is_quantized(source.config):
        settings["dtype"] = torch.bfloat16
    model = _checked_load(source, settings).eval()
    return model if source.gguf is None else gguf_files.as_dense(model)


def _class_name(model: Any) -> str:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__


def _shape_alone(source: Source, dtype: str | torch.dtype) -> Any:
    """The modules of ``source`` without their weights, of which none are downloaded or read."""
    from workbench.engine.from_config import class_for

    config = read_config(source)
    with torch.device("meta"):
        return (
            class_for(config)
            .from_config(config, dtype=_dtype_of(config, dtype), trust_remote_code=source.trust_remote_code)
            .eval()
        )


def read_config(source: Source) -> Any:
    """What transformers makes of the config of ``source``. Raises UserError when it cannot be read."""
    return _config_in(source.local(weights=False), source.reading, source.name)


def _config_in(folder: Path, reading: Mapping[str, Any], name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, **HOW_COMPUTED, **reading)
    except (ValueError, OSError, *WRONG_TYPES) as error:
        raise UserError(f"The config of {name} cannot be read: {_first_line(error)}") from error


def _dtype_of(config: Any, dtype: str | torch.dtype) -> torch.dtype:
    resolved = resolve_dtype(dtype)
    return resolved if isinstance(resolved, torch.dtype) else (config.dtype or torch.float32)


def _weight_settings(source: Source) -> dict[str, Any]:
    if source.gguf is not None:
        from transformers import GgufConfig

        return {"quantization_config": GgufConfig(dequantize=True)}  # packed, its modules would not be linear maps
    settings: dict[str, Any] = {
        "use_safetensors": not checkpoints.is_pickle_only(source.files, adapter=False),
    }
    if variant := checkpoints.variant_of(source.files):
        settings["variant"] = variant
    if (quantization(source.config) or "").startswith("mxfp4"):
        from transformers import Mxfp4Config

        settings["quantization_config"] = Mxfp4Config(dequantize=True)
    if (quantization(source.config) or "").startswith("compressed-tensors"):
        from transformers import CompressedTensorsConfig

        try:
            settings["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        except ImportError as error:
            raise _absent(source, error) from error
    return settings


def _absent(source: Source, error: ImportError) -> UserError:
    how = quantization(source.config) or "as stored"
    return UserError(f"{source.name} ({how}) needs a package that is absent: {error}")


def _checked_load(source: Source, settings: dict[str, Any]) -> Any:
    folder = source.local()
    if _readable_headers(source):
        stored = checkpoints.stored_tensors(folder)
        checkpoints.check_depth(source.config, stored, source.name)
        if quantization(source.config) is None:
            checkpoints.check_unpacked(stored, source.name)
            _check_size(source, folder, stored)
    try:
        with without_bars():
            loader = _auto_class(source)
            model, info = loader.from_pretrained(folder, output_loading_info=True, **settings)
    except ImportError as error:
        raise _absent(source, error) from error
    except (ValueError, RuntimeError, OSError, *WRONG_TYPES) as error:
        _check_stored(source, folder)
        said = _other_shape(source, folder) or _first_line(error)
        raise UserError(f"transformers could not load {source.name}: {said}") from error
    if missing := sorted(info["missing_keys"]):
        _check_stored(source, folder)
        raise UserError(checkpoints.lacking(source.name, missing))
    model.config.return_dict = True  # how its forward hands over what it computed, which is no part of the model
    return model


def _auto_class(source: Source) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own_code = bool(source.config.get("auto_map")) and source.trust_remote_code
    known = source.config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if source.gguf is not None or own_code or known:
        return AutoModelForCausalLM
    from workbench.engine.from_config import class_for

    return class_for(read_config(source))


def _check_size(source: Source, folder: Path, stored: Mapping[str, checkpoints.StoredTensor]) -> None:
    """Raises UserError where the config asks for far more weights than are stored, before memory fills."""
    if fits_plainly(source.config, {name: tensor.shape for name, tensor in stored.items()}):
        return
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if sum(tensor.numel() for tensor in _wanted(source).values()) > max(4 * held, _SMALL):
        said = _other_shape(source, folder) or "its config.json asks for far more weights than its files hold."
        raise UserError(f"transformers could not load {source.name}: {said}")


def _wanted(source: Source) -> Mapping[str, torch.Tensor]:
    """What the config asks for, as shapes alone; nothing where transformers cannot make them."""
    try:
        return dict(_shape_alone(source, "auto").state_dict())
    except (UserError, ValueError, RuntimeError, OSError, ImportError, *WRONG_TYPES):
        return {}


def _other_shape(source: Source, folder: Path) -> str | None:
    """The first stored weight of another shape than the config gives it, in words."""
    if not _readable_headers(source):
        return None
    wanted = _wanted(source)
    for name, tensor in checkpoints.stored_tensors(folder).items():
        if name in wanted and tuple(wanted[name].shape) != tensor.shape and quantization(source.config) is None:
            return checkpoints.other_shape(name, tensor.shape, wanted[name].shape)
    return None


def _check_stored(source: Source, folder: Path) -> None:
    """Names the cause in the files themselves, where there is one, of what a loader made nothing of."""
    if _readable_headers(source):
        checkpoints.check_whole(checkpoints.stored_tensors(folder), source.name)


def _readable_headers(source: Source) -> bool:
    return source.gguf is None and not checkpoints.is_pickle_only(source.files, adapter=False)


def _first_line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}; save or download it again."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a tokenizer."""
    return any((folder / name).is_file() for name in checkpoints.TOKENIZER_FILES)


def load_tokenizer(*sources: Source, tokenizer: Any = None) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer of the first of ``sources`` that has one (tuned before base), and notes for people.

    It pads on the left and always has a padding token. ``tokenizer`` (an object or a folder) goes before all
    sources; an object given is copied, never changed. Raises UserError when there is none.
    """
    notes: list[str] = []
    own = _given_tokenizer(tokenizer) if tokenizer is not None else _first_tokenizer(sources, notes)
    own.padding_side = "left"
    if rate := getattr(getattr(getattr(own, "backend_tokenizer", None), "model", None), "dropout", None):
        own.backend_tokenizer.model.dropout = None
        notes.append(
            f"The tokenizer drops merges at random (dropout {rate:g}), to train on: it reads without that here."
        )
    if own.pad_token_id is None:
        stand_in = own.eos_token or own.unk_token or own.bos_token
        if stand_in is None:
            raise UserError("The tokenizer has no padding, end or unknown token; set tokenizer.pad_token.")
        own.pad_token = stand_in
        notes.append(f"The tokenizer has no padding token; {stand_in} stands in, masked as padding.")
    return own, tuple(notes)


def _given_tokenizer(tokenizer: Any) -> Any:
    if isinstance(tokenizer, str | Path):
        folder = Path(tokenizer).expanduser()
        if not folder.is_dir() or not has_tokenizer(folder):
            raise UserError(f"{folder} holds no tokenizer; give a folder with tokenizer.json.")
        return _read_tokenizer(folder, {})
    return copy.deepcopy(tokenizer)


def _first_tokenizer(sources: tuple[Source, ...], notes: list[str]) -> Any:
    for position, source in enumerate(sources):
        folder = _tokenizer_folder(source)
        if folder is None:
            continue
        if position:
            notes.append(f"{sources[0].name} brings no tokenizer; that of {source.name} is used.")
        return _read_tokenizer(folder, source.reading)
    names = " and ".join(source.name for source in sources)
    raise UserError(f"No tokenizer is saved with {names}; pass tokenizer=, an object or a folder.")


def brings_tokenizer(source: Source) -> bool:
    """Whether ``source`` has a tokenizer of its own."""
    return _tokenizer_folder(source) is not None


def _tokenizer_folder(source: Source) -> Path | None:
    if source.gguf is not None:
        return source.folder
    if source.model is not None:  # a loaded model remembers the folder it came from
        folder = Path(source.name)
        return folder if folder.is_dir() and has_tokenizer(folder) else None
    if not any(name in source.files for name in checkpoints.TOKENIZER_FILES):
        return None
    return source.local(weights=False)


def same_tokenizer(one: Source, other: Source) -> bool:
    """Whether two sources have one tokenizer: the same folder, or the same bytes in every file of it."""
    folders = [_tokenizer_folder(source) for source in (one, other)]
    if None in folders or one.gguf != other.gguf:
        return False
    if folders[0] == folders[1]:
        return True
    files = [
        {path.name: path for path in folder.iterdir() if _OF_TOKENIZER.match(path.name)} for folder in folders if folder
    ]
    return files[0].keys() == files[1].keys() and all(
        filecmp.cmp(files[0][name], files[1][name], shallow=False) for name in files[0]
    )


def _check_read(folder: Path, file: Path, reading: Mapping[str, Any]) -> None:
    """Names what is wrong with the files of a tokenizer that no loader could read."""
    if file.name == "tokenizer.json" and file.is_file():
        checkpoints.read_json(file)
    if (folder / "config.json").is_file():
        _config_in(folder, reading, str(folder))  # what the tokenizer's class is chosen by


def _read_tokenizer(folder: Path, reading: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    file = folder / reading.get("gguf_file", "tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, **reading)
    except (ValueError, OSError, ImportError, KeyError, TypeError, RecursionError, StrictDataclassError) as error:
        _check_read(folder, file, reading)
        raise NotSupported(f"The tokenizer in {folder} cannot be read: {_first_line(error)}") from error
    except Exception as error:
        _check_read(folder, file, reading)
        if type(error) is not Exception or not file.is_file():
            raise
        # the parser of the tokenizers package, which is Rust, raises Exception itself
        raise NotSupported(
            f"{file} cannot be read ({_first_line(error)}): it is damaged or of a newer tokenizers; save the tokenizer "
            "again, or pass tokenizer=."
        ) from error
