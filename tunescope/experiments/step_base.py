"""What every step of an experiment has."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tunescope.experiments.inputs import PairSpec
from tunescope.experiments.key_kinds import PromptsName
from tunescope.experiments.strict import MOST_SEED, Strict


class Step(Strict):
    """What every step has."""

    leading_keys: ClassVar[tuple[str, ...]] = ("do",)

    do: str
    """What it does."""

    prompts: PromptsName | None = None
    """The name of a set of prompts; left out: the first."""
    seed: int | None = Field(default=None, ge=0, le=MOST_SEED)
    """Of splits, draws and intervals; left out: the experiment's."""
    pair: PairSpec | None = None
    """Other models for this step; left out: the experiment's. Splits are then those of this organism."""
