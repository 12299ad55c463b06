# Written by .ci/stubs.py (make stubs) from the package's table of lazy names; do not edit.

import interventions as interventions
import probes as probes
from workbench import AdaptedModel as AdaptedModel
from workbench import ModelPair as ModelPair
from workbench import ModelSeries as ModelSeries
from workbench import Prompts as Prompts
from workbench import Recording as Recording
from workbench import Site as Site
from workbench import UserError as UserError
from workbench import __version__ as __version__
from workbench import behaviour as behaviour
from workbench import behaviour_diff as behaviour_diff
from workbench import contrast as contrast
from workbench import dose_response as dose_response
from workbench import known_unknown as known_unknown
from workbench import load_model as load_model
from workbench import load_pair as load_pair
from workbench import load_series as load_series
from workbench import on_ray as on_ray
from workbench import on_vllm as on_vllm
from workbench import record as record
from workbench import scope_panel as scope_panel
from workbench import sure_unsure as sure_unsure

__all__ = [
    "AdaptedModel",
    "ModelPair",
    "ModelSeries",
    "Prompts",
    "Recording",
    "Site",
    "UserError",
    "behaviour",
    "behaviour_diff",
    "contrast",
    "dose_response",
    "interventions",
    "known_unknown",
    "load_model",
    "load_pair",
    "load_series",
    "on_ray",
    "on_vllm",
    "probes",
    "record",
    "scope_panel",
    "sure_unsure",
]
