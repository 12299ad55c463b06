"""The planted knob of the trained organism: layer and direction found, both models set by it, random ones not."""

from __future__ import annotations

import pytest

from probes.knob.find import find_knob
from workbench import organisms
from workbench.models.pair import load_pair


@pytest.mark.slow
def test_the_planted_knob_is_found_in_a_trained_pair() -> None:
    organism = organisms.build("context-knob")
    knob = find_knob(load_pair(organism.base, organism.tuned), organism.splits["train"])
    assert knob.layer == organism.truth.layer
    assert (knob.search.loc[knob.search["chosen"], "layers"] == str(organism.truth.layer)).all()
    assert float(knob.direction[:, 0] @ organism.truth.direction) >= 0.9
    flips = knob.flips.set_index("model")
    assert flips["share"].min() >= 0.9 and flips.loc["tuned", "control"].max() <= 0.05
    assert (flips.loc["base", "share"] - flips.loc["base", "before"]).min() >= 0.25
