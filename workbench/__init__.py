"""Tunescope's core: model pairs, sites, the hook engine, prompts, recording, statistics, runs, figures, organisms.

``import workbench as wb`` costs nothing; each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from workbench.lazy import lazy
from workbench.notebook import in_kernel, stay_quiet

__version__ = "0.1.0"

_HOMES = {
    "AdaptedModel": "models.adapted",
    "ModelPair": "models.pair",
    "ModelSeries": "models.series",
    "Prompts": "prompts",
    "Recording": "recording.recording",
    "Site": "engine.sites",
    "UserError": "errors",
    "load_model": "models.pair:load_one",
    "load_pair": "models.pair",
    "load_series": "models.series",
    "behaviour_diff": "behaviour",
    "contrast": "behaviour.contrast",
    "dose_response": "behaviour",
    "known_unknown": "behaviour",
    "scope_panel": "behaviour",
    "sure_unsure": "behaviour",
    "on_ray": "cluster.splitting",
    "on_vllm": "vllm.routing",
    "record": "recording.record_pair:record",
}
__all__ = sorted([*_HOMES, "behaviour"])
_attribute = lazy(__name__, _HOMES)

if in_kernel():
    stay_quiet()


def __getattr__(name: str) -> Any:
    if name == "behaviour":  # a package that can be called
        return import_module("workbench.behaviour")
    return _attribute(name)


def __dir__() -> list[str]:
    return __all__
