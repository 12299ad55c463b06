"""How a run loaded its models, as the ``pair`` of an experiment loads them again."""

from __future__ import annotations

from typing import Any

from workbench.errors import NotSupported
from workbench.runs import Run

_RISKS = {"allow_pickle": "--allow-pickle", "trust_remote_code": "--trust-remote-code"}
_KEYS = ("device", "dtype", "template", "own_generation_config")
_OTHERS = ("device_map", "attn_implementation", "tokenizer", "backend")
"""Options of ``load_pair`` and ``record`` for which an experiment file has no key."""


def loading_of(run: Run) -> dict[str, Any]:
    """``device``, ``dtype`` and how prompts are read, as far as the run keeps them.

    Raises :class:`NotSupported` for models that were loaded, or read, as no experiment does it.
    """
    config = run.config
    for key, flag in _RISKS.items():
        if config.get(key):
            raise NotSupported(
                f"{run.path} loaded its models with {flag}, which runs code that they bring; an experiment file never "
                "does, so run the command again."
            )
    for key in _OTHERS:
        if config.get(key) is not None:
            raise NotSupported(
                f"{run.path} was made with {key} {config[key]!r}, for which an experiment file has no key; run the "
                "command again."
            )
    return {key: config[key] for key in _KEYS if config.get(key) is not None}
