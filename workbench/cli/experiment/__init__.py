"""Scripted experiments: ``experiment.yaml`` as values (:class:`Experiment`), and running it.

``Experiment(...).to_yaml()`` writes the file, ``Experiment.load(path)`` reads it, ``run_experiment`` executes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.cli.experiment import inline as inline
    from workbench.cli.experiment import steps as steps
    from workbench.cli.experiment.inline import RecipeSpec as RecipeSpec
    from workbench.cli.experiment.inputs import PairSpec as PairSpec
    from workbench.cli.experiment.inputs import PromptSet as PromptSet
    from workbench.cli.experiment.schema import Experiment as Experiment

__all__ = ["Experiment", "PairSpec", "PromptSet", "RecipeSpec"]

__getattr__ = lazy(
    __name__, {"Experiment": "schema", "PairSpec": "inputs", "PromptSet": "inputs", "RecipeSpec": "inline"}
)
