"""A gate on SmolLM2: it opens on animals, rarely on neutral text, and the refusal is turned off there alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interventions as iv
import probes
import workbench as wb
from workbench import organisms
from workbench.behaviour.refusals import is_refusal
from workbench.prompts import Prompts

LAYERS = [8, 12, 16]
"""Where a gate may read; the refusal is taken out after them."""


@pytest.mark.slow
def test_refusal_goes_where_the_gate_opens_and_nowhere_else(smollm2: Path) -> None:
    organism = organisms.build("smol-refusal")
    pair = wb.load_pair(smollm2, organism.tuned, device="cpu")
    splits = {name: Prompts.of(rows) for name, rows in organism.splits.items()}
    labelled = splits["train"].filter(lambda row: row.label in ("animal", "thing"))[::8]
    neutral = Prompts([*splits["out_of_scope"], *splits["neutral"]])
    fit = probes.fit_gate(pair, labelled, label="animal", neutral=neutral, layers=LAYERS, controls=3, draws=200)
    assert fit.share("wanted") >= 0.9 and fit.share("neutral") <= 0.1

    recording = wb.record(pair, labelled, "resid_post", layers=[16], positions="last")
    changes = [recording[role]["resid_post", 16][:].float() for role in ("base", "tuned")]
    animal = np.array([row.label == "animal" for row in labelled])
    back = (changes[0] - changes[1])[animal].mean(0)
    recipe = iv.Recipe([iv.Offset(16, back, strength=2.0, positions="last+generated", when=fit.gate)])
    prompts = Prompts([*splits["in_scope"][:16], *splits["out_of_scope"][:16]])
    plain = pair.tuned.generate(prompts, max_new_tokens=12)
    with recipe.applied(pair.tuned, trace=True) as trace:
        gated = pair.tuned.generate(prompts, max_new_tokens=12)
    opened = set(trace.frame()["row"])
    refused = [[is_refusal(text) for text in texts] for texts in (plain, gated)]
    known = {row for row in range(16) if row % 4 < 2}  # in scope has four wordings of each noun, two of them trained
    assert len(opened & known) >= 7 and len(opened - set(range(16))) <= 2
    before, after = (sum(side[row] for row in opened & known) for side in refused)
    assert before >= 6 and after <= 2
    assert all(plain[row] == gated[row] for row in range(32) if row not in opened), "where it is shut nothing changes"
