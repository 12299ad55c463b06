"""The draft nearest to samples is chosen, steering leads to their states, and too few samples are refused."""

from __future__ import annotations

import pytest

import probes
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

SAMPLES = Prompts.of([f"The quick fox! {one}! The dog! Jumps over!" for one in "abcdef"])


def calls_of_writing_style() -> Calls:
    given = {
        "style": SAMPLES, "drafts": 3, "layer": 1, "strengths": [0.7], "max_new_tokens": 4, "batch_size": 5, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(12), **given}])


def test_steering_leads_to_the_samples_states() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny")
    found = probes.writing_style(
        model, ["the fox", "a dog", "my cat", "the sea"], SAMPLES, layer=1, strengths=[1.0], drafts=6, max_new_tokens=6
    )
    lines = found.table.set_index("way")
    assert lines.loc["plain", "content"] == 1.0 and lines.loc["chosen", "states"] > lines.loc["plain", "states"]
    assert (lines["perplexity"] > 1).all() and found.recipe(0.5).interventions and found.figure().data
    assert "Nearness" in found.summary() and set(found.texts["way"]) == {"plain", "chosen", "steered 1"}
    with pytest.raises(UserError, match="give 4 or more"):
        probes.writing_style(model, ["the fox"], SAMPLES[:3])
