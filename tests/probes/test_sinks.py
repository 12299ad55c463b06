"""An attention sink decides no mean over tokens: it is left out of activation differences and concept directions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from probes.concepts.probe import concept_directions
from probes.deltas import activation_delta
from workbench.recording.job import difference_table
from workbench.recording.recording import Recording
from workbench.recording.sink_rows import averaged_rows

D, PROMPTS, LENGTH = 16, 12, 5
SITE = "blocks.0.hook_resid_post"


def recording(sink: float) -> Recording:
    """Tuning adds 1 along the first axis to every token; the first token has a coordinate ``sink`` beside it."""
    random = torch.Generator().manual_seed(0)
    base = torch.randn(PROMPTS * LENGTH, D, generator=random)
    tuned = base + 0.1 * torch.randn(base.shape, generator=random)
    tuned[:, 0] += 1
    position = np.arange(PROMPTS * LENGTH) % LENGTH
    base[position == 0, 5], tuned[position == 0, 5] = sink, 1.5 * sink
    index = pd.DataFrame(
        {"prompt": np.arange(PROMPTS * LENGTH) // LENGTH, "position": position, "token": "w", "phase": "prompt",
         "content": position > 0, "label": ["a", "b"] * (PROMPTS * LENGTH // 2)}
    )  # fmt: skip
    config = {"roles": ["base", "tuned"], "sites": [SITE], "n_prompts": PROMPTS}
    return Recording(index, config, {"base": {SITE: base}, "tuned": {SITE: tuned}})


def test_the_activation_difference_does_not_see_the_sink() -> None:
    quiet, loud = activation_delta(recording(0.0)), activation_delta(recording(1e4))
    assert quiet.table["score"][0] == loud.table["score"][0] > 0.2
    assert "12 of 60 rows left out" in loud.tokens and loud.tokens in loud.summary()
    assert activation_delta(recording(1e4), tokens="all").table["score"][0] != loud.table["score"][0]
    assert len(activation_delta(recording(1e4), by_position=True).table) == LENGTH


def test_concept_directions_and_means_do_not_see_the_sink() -> None:
    loud = concept_directions(recording(1e4), "mean")
    assert abs(float(loud.directions[0, 0])) > 0.95 and float(loud.mean.abs().max()) < 1
    assert abs(float(concept_directions(recording(1e4), "mean", tokens="all").directions[0, 5])) > 0.95
    assert set(loud.contexts["position"]) <= set(range(1, LENGTH))


def test_a_sink_on_another_token_than_the_first_is_seen_by_its_length() -> None:
    """Some models park one on the first full stop."""
    made = recording(0.0)
    quiet = activation_delta(made)
    for side in ("base", "tuned"):
        made[side][SITE][np.arange(3, PROMPTS * LENGTH, LENGTH)[:4], 5] = 1e4
    loud = activation_delta(made)
    assert abs(loud.table["score"][0] / quiet.table["score"][0] - 1) < 0.1
    assert "16 of 60 rows left out" in loud.tokens and "4 more than 20 times as long as the median" in loud.tokens
    assert difference_table(made)["n"][0] == PROMPTS * (LENGTH - 1) - 4
    assert float(concept_directions(made, "mean").mean.abs().max()) < 1
    assert activation_delta(made, tokens="all").table["score"][0] < 0.1 * loud.table["score"][0]


def test_a_base_of_zeros_is_ranked_by_the_change_itself() -> None:
    made = recording(0.0)
    made["base"][SITE][:] = 0.0
    made["tuned"][SITE][:] = 0.0
    made["tuned"][SITE][:, 0] = 5.73
    found = activation_delta(made)
    assert abs(found.table["score"][0] - 5.73) < 0.01 and found.table["q"][0] < 0.05
    assert abs(difference_table(made)["relative"][0] - 5.73) < 0.01


def test_the_table_of_a_recorded_run_does_not_see_the_sink() -> None:
    quiet, loud = (difference_table(recording(one)) for one in (0.0, 1e4))
    assert quiet.equals(loud) and loud["n"][0] == PROMPTS * (LENGTH - 1)


def test_a_prompt_recorded_at_one_position_keeps_it() -> None:
    index = recording(0.0).index
    assert averaged_rows(index[index["position"] == 0]).rows.all()
    generated = index.assign(phase=np.where(index["position"] > 0, "generated", "prompt"))
    assert averaged_rows(generated).rows.all()
