"""Scripted experiments: ``experiment.yaml`` as values (:class:`Experiment`), and running it.

``Experiment(...).to_yaml()`` writes the file, ``Experiment.load(path)`` reads it, ``run_experiment`` executes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from tunescope.experiments import inline as inline
    from tunescope.experiments import steps as steps
    from tunescope.experiments.from_recipe import recipe_spec as recipe_spec
    from tunescope.experiments.inline import RecipeSpec as RecipeSpec
    from tunescope.experiments.inputs import PairSpec as PairSpec
    from tunescope.experiments.inputs import PromptSet as PromptSet
    from tunescope.experiments.recipes import recipe_of as recipe_of
    from tunescope.experiments.running import Finished as Finished
    from tunescope.experiments.running import run_experiment as run_experiment
    from tunescope.experiments.schema import Experiment as Experiment

__all__ = [
    "Experiment",
    "Finished",
    "PairSpec",
    "PromptSet",
    "RecipeSpec",
    "recipe_of",
    "recipe_spec",
    "run_experiment",
]

__getattr__ = lazy(
    __name__,
    {
        "Experiment": "schema",
        "Finished": "running",
        "PairSpec": "inputs",
        "PromptSet": "inputs",
        "RecipeSpec": "inline",
        "recipe_of": "recipes",
        "recipe_spec": "from_recipe",
        "run_experiment": "running",
    },
)
