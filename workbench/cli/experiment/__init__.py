"""Scripted experiments: ``experiment.yaml`` as values (:class:`Experiment`), and running it.

``Experiment(...).to_yaml()`` writes the file, ``Experiment.load(path)`` reads it, ``run_experiment`` executes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.cli.experiment import inline as inline
    from workbench.cli.experiment import steps as steps
    from workbench.cli.experiment.from_recipe import recipe_spec as recipe_spec
    from workbench.cli.experiment.inline import RecipeSpec as RecipeSpec
    from workbench.cli.experiment.inputs import PairSpec as PairSpec
    from workbench.cli.experiment.inputs import PromptSet as PromptSet
    from workbench.cli.experiment.running import Finished as Finished
    from workbench.cli.experiment.running import run_experiment as run_experiment
    from workbench.cli.experiment.schema import Experiment as Experiment

__all__ = ["Experiment", "Finished", "PairSpec", "PromptSet", "RecipeSpec", "recipe_spec", "run_experiment"]

__getattr__ = lazy(
    __name__,
    {
        "Experiment": "schema",
        "Finished": "running",
        "PairSpec": "inputs",
        "PromptSet": "inputs",
        "RecipeSpec": "inline",
        "recipe_spec": "from_recipe",
        "run_experiment": "running",
    },
)
