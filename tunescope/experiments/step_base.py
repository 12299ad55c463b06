"""What every step of an experiment has."""

from __future__ import annotations

from typing import ClassVar

from tunescope.experiments.inputs import PairSpec
from tunescope.experiments.key_kinds import PromptsName
from tunescope.experiments.strict import Strict


class Step(Strict):
    """What every step has."""

    tags: ClassVar[tuple[str, ...]] = ("do",)

    do: str
    """What it does."""

    prompts: PromptsName | None = None
    """The name of a set of prompts; left out: the first."""
    seed: int | None = None
    """Of splits, draws and intervals; left out: the experiment's."""
    pair: PairSpec | None = None
    """Other models for this step; left out: the experiment's. Splits are then those of this organism."""
