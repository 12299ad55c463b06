"""What a person may hand over as a model, and what it turns out to be. No weights are loaded to find out."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from workbench.errors import NotSupported, UserError
from workbench.files import MOST_TEXT, closest_sibling
from workbench.models import checkpoints, gguf_files, hub

_LOADABLE_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
# adapters that a plain forward pass on token ids cannot run, or that run the model more than once
_NEEDS_MORE = {
    "XLORA": "it runs every input twice, first to mix its parts, so a hook would fire twice "
    "(interventions.open_xlora opens it, and live_gates reads and changes its mixing)",
    "POLY": "it needs a task id with every input",
    "SHADOW": "its layers hand on a second stream beside the model's own, which is at none of the sites",
}


class Kind(StrEnum):
    """The forms a model comes in."""

    MODEL = "model"  # a checkpoint of a whole model: a folder or a hub id
    ADAPTER = "adapter"  # a PEFT adapter: a folder or a hub id
    LOADED = "loaded model"  # a transformers PreTrainedModel
    PEFT = "PeftModel"  # a base with adapters on it, already loaded
    ATTACHED = "attachment"  # a module or prompt rows of a kind of ours, beside a base: a folder, or one just trained


_SETTINGS = re.compile(r"(config|tokenizer|token|vocab|merges|template|index).*\.(json|txt|jinja|model)$")
"""Files that loaders read whole."""


@dataclass(frozen=True, eq=False)
class Source:
    """A model as given: where it is, what it says about itself, and what was allowed in loading it."""

    kind: Kind
    name: str
    config: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None
    revision: str | None = None
    subfolder: str = ""
    model: Any = field(default=None, repr=False)
    repo: hub.HubRepo | None = field(default=None, repr=False)
    gguf: str | None = None
    """Name of the file in ``folder`` where the model is a GGUF file."""
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether this is an adapter on a base, loaded or not."""
        return self.kind in (Kind.ADAPTER, Kind.PEFT, Kind.ATTACHED)

    @property
    def base_name(self) -> str | None:
        """The base an adapter says it was trained on; None where it names none, or what it has there is no name."""
        name = self.config.get("base_model_name_or_path") if self.is_adapter else None
        return name if isinstance(name, str) and name else None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files beside the config; empty for loaded models."""
        if self.gguf is not None:
            return (self.gguf,)
        if self.repo is not None:
            return self.repo.in_folder(self.subfolder)
        return checkpoints.listing(self.folder) if self.folder is not None else ()

    @property
    def reading(self) -> dict[str, Any]:
        """What transformers' ``from_pretrained`` needs beside :meth:`local`."""
        return {"trust_remote_code": self.trust_remote_code} if self.gguf is None else {"gguf_file": self.gguf}

    def local(self, *, weights: bool = True) -> Path:
        """The folder with everything a loader needs (or all but the weights); downloads what a hub id still lacks.

        Raises UserError when the download fails or a file is damaged.
        """
        if self.repo is None:
            if self.folder is None:
                raise ValueError(f"{self.name} is a {self.kind}: it has no folder")
            return self.folder
        suffixes: tuple[str, ...] = (*_LOADABLE_SUFFIXES, ".bin") if self._pickled() else _LOADABLE_SUFFIXES
        if not weights:
            suffixes = tuple(suffix for suffix in _LOADABLE_SUFFIXES if suffix != ".safetensors")
        return hub.fetch(self.repo, self.subfolder, [name for name in self.files if name.endswith(suffixes)])

    def _pickled(self) -> bool:
        return self.allow_pickle and checkpoints.is_pickle_only(self.files, adapter=self.is_adapter)


def describe(
    model: Any,
    *,
    subfolder: str = "",
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Source:
    """Classify what a person gave as a model.

    ``model`` is a folder, a ``.gguf`` file, a hub id (``org/name``, ``org/name/sub/folder``, ``org/name/file.gguf``,
    ``org/name@revision``), a transformers model, a ``PeftModel``, or a Source. ``allow_pickle`` admits ``.bin``
    checkpoints, ``trust_remote_code`` models that bring their own code. Raises UserError for what is no model,
    NotSupported for what cannot be compared.
    """
    if isinstance(model, Source):
        return model
    if not isinstance(model, str | Path):
        return _describe_loaded(model)
    flags = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    path = Path(model).expanduser()
    if path.exists():
        return _describe_folder(path / subfolder, subfolder, flags)
    parsed = hub.parse_id(model) if isinstance(model, str) else None
    if parsed is None or Path(parsed[0].split("/")[0]).is_dir():
        raise UserError(f"There is no folder {path}.{closest_sibling(path)}")
    repo, inner, pinned = parsed
    return _describe_repo(hub.resolve(repo, revision or pinned), subfolder or inner, flags)


def _describe_folder(folder: Path, subfolder: str, flags: dict[str, Any]) -> Source:
    if folder.suffix.lower() == gguf_files.SUFFIX and folder.is_file():
        return _describe_gguf(folder, flags)
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the folder that holds it and its config.json.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.{closest_sibling(folder)}")
    _check_entries(folder)
    names = checkpoints.listing(folder)
    if "attachment.json" in names:
        raise NotSupported(
            f"{folder} is an attachment (a side path or prompt rows), which changes no weight and runs beside its "
            "base: give it to load_pair, and read it there by activations or parts."
        )
    if "config.json" not in names and "adapter_config.json" not in names:
        raise UserError(_no_config(folder, names))
    kind = _kind_of(names, str(folder), flags["allow_pickle"])
    config = checkpoints.read_json(folder / _config_name(kind))
    source = Source(kind, str(folder), config, folder=folder, subfolder=subfolder, **flags)
    _check_config(source)
    if not checkpoints.is_pickle_only(names, adapter=kind is Kind.ADAPTER):
        for path in checkpoints.weight_files(folder, adapter=kind is Kind.ADAPTER):
            with checkpoints.opened(path):
                pass
    return source


def _check_entries(folder: Path) -> None:
    """Loaders open whatever bears the right name: a pipe or a device has no end, and a settings file is read whole."""
    for entry in folder.iterdir():
        try:
            state = entry.stat()
        except OSError:  # a link to nowhere
            continue
        if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
            raise UserError(f"{entry} is no regular file (a pipe, a socket or a device): take it out of the folder.")
        if state.st_size > MOST_TEXT and _SETTINGS.search(entry.name):
            raise UserError(f"{entry} holds {state.st_size:,} bytes, of {MOST_TEXT:,} at most: it is damaged.")


def _describe_gguf(file: Path, flags: dict[str, Any], *, name: str = "", revision: str | None = None) -> Source:
    config = gguf_files.read_config(file)
    return Source(
        Kind.MODEL, name or str(file), config, folder=file.parent, revision=revision, gguf=file.name, **flags
    )  # fmt: skip


def _no_config(folder: Path, names: tuple[str, ...]) -> str:
    inner = sorted(
        (
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and ((entry / "config.json").is_file() or (entry / "adapter_config.json").is_file())
        ),
        key=_by_number,
    )
    files = [name for name in names if name.endswith(gguf_files.SUFFIX)]
    if files and not inner:
        return f"{folder} is no model, a file in it is one: give {folder / files[0]}."
    if inner:
        return f"{folder} is no model, its sub-folders are: give {folder / inner[-1]} (of {', '.join(inner)})."
    return (
        f"{folder} is neither a model nor an adapter: config.json or adapter_config.json was expected, "
        f"{checkpoints.names_found(names)}."
    )


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts checkpoint-9 before checkpoint-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _describe_repo(repo: hub.HubRepo, subfolder: str, flags: dict[str, Any]) -> Source:
    where = f"{repo.repo}/{subfolder}" if subfolder else repo.repo
    if subfolder.endswith(gguf_files.SUFFIX):
        within, _, file = subfolder.rpartition("/")
        return _describe_gguf(hub.fetch(repo, within, [file]) / file, flags, name=where, revision=repo.revision)
    names = repo.in_folder(subfolder)
    if "config.json" not in names and "adapter_config.json" not in names:
        raise UserError(
            f"The hub's {where} is neither a model nor an adapter: config.json or adapter_config.json was "
            f"expected, {checkpoints.names_found(names)}."
        )
    kind = _kind_of(names, where, flags["allow_pickle"])
    config = checkpoints.read_json(hub.fetch(repo, subfolder, [_config_name(kind)]) / _config_name(kind))
    source = Source(kind, where, config, revision=repo.revision, subfolder=subfolder, repo=repo, **flags)
    _check_config(source)
    return source


def _config_name(kind: Kind) -> str:
    return "adapter_config.json" if kind is Kind.ADAPTER else "config.json"


def _kind_of(names: tuple[str, ...], where: str, allow_pickle: bool) -> Kind:
    has_adapter = "adapter_config.json" in names
    has_model = checkpoints.WEIGHTS in names or checkpoints.INDEX in names or bool(checkpoints.variant_of(names))
    if has_adapter and has_model:
        raise UserError(f"{where} holds both a whole model and an adapter; move one of them to a folder of its own.")
    checkpoints.check_weights_listed(names, where, adapter=has_adapter, allow_pickle=allow_pickle)
    return Kind.ADAPTER if has_adapter else Kind.MODEL


def _check_config(source: Source) -> None:
    if source.kind is Kind.ADAPTER:
        check_adapter_type(source.config.get("peft_type"), source.name)
        _check_plain_factors(source.config, source.name)
        _check_same_layers_and_tokens(source.config, source.name)
        return
    from transformers import CONFIG_MAPPING
    from transformers import __version__ as version

    model_type = source.config.get("model_type")
    if str(model_type) in CONFIG_MAPPING or source.trust_remote_code:
        return  # a native class is used even where the checkpoint also brings code of its own
    if source.config.get("auto_map"):
        raise UserError(
            f"{source.name} needs code from its own repository to run; pass trust_remote_code=True "
            "(--trust-remote-code) if you have read that code and trust it."
        )
    if model_type is None:
        raise UserError(f"{source.name}'s config.json names no model_type; a transformers checkpoint was expected.")
    raise NotSupported(f"transformers {version} does not know {source.name}'s model_type {model_type!r}; upgrade it.")


def check_adapter_type(peft_type: str | None, where: str) -> None:
    """Raises NotSupported for adapters that are no change of modules on the same tokens."""
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    known = {str(name.value): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = peft_type.value if isinstance(peft_type, PeftType) else peft_type
    if name == "PROMPT_TUNING_LORA":
        raise NotSupported(
            f"{where} is a DePT adapter, which adds virtual tokens, so the positions of the two models do not line up: "
            "read it with decomposed_prompt."
        )
    if name is None or name not in known:
        raise NotSupported(f"{where}: the installed PEFT knows no adapter type {name!r}; upgrade peft.")
    if name in _NEEDS_MORE:
        raise NotSupported(f"{where} is a {name} adapter: {_NEEDS_MORE[name]}; give one that changes modules alone.")
    if issubclass(known[name], PromptLearningConfig) or name == PeftType.ADAPTION_PROMPT:
        raise NotSupported(
            f"{where} is a {name} adapter: it adds virtual tokens instead of changing the model, so the "
            "positions of the two models do not line up; give an adapter that changes modules, as LoRA does."
        )


def _check_plain_factors(config: Mapping[str, Any], where: str) -> None:
    if config.get("use_nola"):
        raise NotSupported(
            f"{where} is a NOLA adapter, of which PEFT would load the starting matrices alone and change nothing: read "
            "it with random_bases, or make it a LoRA with lora_from_random_bases."
        )


def _check_same_layers_and_tokens(config: Mapping[str, Any], where: str) -> None:
    if config.get("layer_replication"):
        raise NotSupported(
            f"{where} repeats layers of its base (layer_replication), so the layers of the two models do not line up: "
            "give an adapter that keeps the base's layers."
        )
    if config.get("alora_invocation_tokens"):
        raise NotSupported(
            f"{where} is an activated LoRA (alora_invocation_tokens): it acts from a phrase of the prompt on, which no "
            "method here follows; take alora_invocation_tokens out of a copy of its adapter_config.json to see it as "
            "a LoRA that acts at every token."
        )


def _describe_loaded(model: Any) -> Source:
    from peft import PeftMixedModel, PeftModel
    from transformers import PreTrainedModel

    if isinstance(model, PeftMixedModel):
        raise NotSupported("A PeftMixedModel mixes adapter types in one pass; load one of them as a PeftModel.")
    if isinstance(model, PeftModel):
        config = model.active_peft_config
        check_adapter_type(config.peft_type, "The PeftModel")
        for each in model.peft_config.values():
            _check_same_layers_and_tokens(each.to_dict(), "The PeftModel")
        return Source(Kind.PEFT, _name_of(model.get_base_model()), config.to_dict(), model=model)
    if not isinstance(model, PreTrainedModel):
        if isinstance(getattr(model, "_orig_mod", None), PreTrainedModel):
            raise UserError("This model went through torch.compile; give the model from before (its _orig_mod).")
        raise UserError(
            f"A model was expected (a folder, a hub id, a transformers model or a PeftModel), not a "
            f"{type(model).__name__}."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            "This model carries adapters loaded with its own load_adapter; give the bare model as the base "
            "and the adapter's folder as the tuned one."
        )
    return Source(Kind.LOADED, _name_of(model), model.config.to_dict(), model=model)


def _name_of(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or type(model).__name__)
