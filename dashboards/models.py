"""The one pair of models the server holds; model code is imported here, when a pair is first asked for."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from dashboards.state import WARM
from workbench.errors import UserError
from workbench.files import file_text

_STAGES = {
    "results": ("workbench.results", "probes.headlines"),
    "models": (
        "interventions.recipe", "interventions.sweep", "workbench.models.pair", "transformers.generation",
        "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "peft", "scipy.stats",
    ),
    "look": ("tunescope.look.keep",),
}  # fmt: skip
"""What reading a result, then the first steer, then the steps of a look import."""

_SMALL = 4_000_000_000
"""Bytes of weights up to which float32 is worth its room."""

if TYPE_CHECKING:
    from workbench.models.pair import ModelPair


def _load(base: str, tuned: str, device: str, dtype: str) -> ModelPair:
    warm().wait("models")
    from workbench.models.pair import load_pair

    return load_pair(base, tuned, device=device, dtype=dtype)


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_held = st.cache_resource(max_entries=1, show_spinner=False, on_release=lambda _: _release())(_load)


def pair(base: str, tuned: str, device: str = "auto", dtype: str = "auto") -> ModelPair:
    """The pair, from memory or loaded now; a pair loaded before makes room for it.

    ``base`` alone may be the name of an organism (``refusal-moe``), which is trained when it is not there yet. Raises
    :class:`UserError` for what cannot be loaded.
    """
    from_, to = places(base.strip(), tuned.strip())
    return _held(from_, to, device, dtype)


def quick_dtype(base: str, device: str = "auto") -> str:
    """float32 for a small model stored in half precision that a processor is to run, as ``tunescope look`` has it: most
    processors are many times slower in bfloat16. Else auto, the stored one."""
    import torch

    folder = Path(base)
    if device not in ("auto", "cpu") or (device == "auto" and torch.cuda.is_available()) or not folder.is_dir():
        return "auto"
    try:
        config = json.loads(file_text(folder / "config.json"))
    except (OSError, ValueError):
        return "auto"
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return "float32" if stored in ("bfloat16", "float16") and size < _SMALL else "auto"


def places(base: str, tuned: str) -> tuple[str, str]:
    """Base and tuned model as :func:`pair` loads them: an organism's name stands for both of its folders."""
    if not base:
        raise UserError("Give a base model: a folder, a hub id, or the name of an organism such as refusal-moe.")
    if tuned:
        return base, tuned
    warm().wait("models")
    from workbench import organisms

    known = (*organisms.names(), *organisms.real_names())
    if base not in known:
        raise UserError(
            f"Give a tuned model beside {base}: a folder, a hub id or a PEFT adapter. "
            f"Only an organism stands alone: {', '.join(known)}."
        )
    grown = organisms.build(base)
    return str(grown.base), str(grown.tuned)


class Warm:
    """Imports of model code, by one thread of the server at a time: ahead of the first click in a thread of its own,
    or by whoever waits for them first.

    transformers imports lazily and in circles: of two threads at once inside it, one can find a module that is half
    there ("cannot import name LogitsProcessorList").
    """

    def __init__(self) -> None:
        self._alone = threading.RLock()
        self._done: set[str] = set()
        if os.environ.get(WARM):
            threading.Thread(target=self._warm, name="warm", daemon=True).start()

    def wait(self, stage: str) -> None:
        """Return when the imports of ``stage`` are over."""
        if stage in self._done:
            return
        for name, modules in _STAGES.items():
            for module in modules:
                with self._alone:
                    import_module(module)
            self._done.add(name)
            if name == stage:
                return

    @contextmanager
    def importing(self) -> Iterator[None]:
        """For what imports model code of which no stage knows: no other thread imports any meanwhile."""
        with self._alone:
            yield

    def _warm(self) -> None:
        try:
            self.wait(list(_STAGES)[-1])
        finally:
            gc.freeze()  # Streamlit collects garbage after every rerun: a third of a second with all of torch to walk


warm = st.cache_resource(show_spinner=False)(Warm)
