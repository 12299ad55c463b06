"""On a chat model with its template and free answers: a direction that turns refusals off, and decoding of the pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interventions as iv
import probes
from workbench import organisms
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

TOKENS = 12
"""Fewer cut the refusals before they can be told."""


@pytest.fixture(scope="module")
def refusal(smollm2: Path) -> tuple[ModelPair, organisms.Organism]:
    organism = organisms.build("smol-refusal")
    assert organism.base == smollm2
    return load_pair(organism.base, organism.tuned, dtype="float32"), organism


@pytest.mark.slow
def test_a_direction_turns_refusals_off_and_leaves_other_answers_and_texts(
    refusal: tuple[ModelPair, organisms.Organism],
) -> None:
    """Also with neutral texts to spare, which used to make it choose a recipe that turns nothing off."""
    pair, organism = refusal
    direction = probes.find_direction(
        pair, organism.splits["held_out"], "refusal", neutral=organism.splits["neutral"], limit=8, candidates=2,
        max_new_tokens=TOKENS, controls=0,
    )  # fmt: skip
    lines = direction.held_out.set_index("model")
    tuned, off = lines.loc["tuned"], lines.loc["tuned + recipe"]
    assert tuned["behaviour"] >= 0.75 and off["behaviour"] <= 0.25 and off["kl_tuned"] <= 0.1
    assert off["perplexity"] <= 1.02 * tuned["perplexity"]


@pytest.mark.slow
def test_attention_in_the_mask_writes_what_eager_attention_writes(
    refusal: tuple[ModelPair, organisms.Organism],
) -> None:
    pair, organism = refusal
    rows = Prompts.of(organism.splits["held_out"])[:3]
    scale = iv.AttentionScale({"L10H3": 3.0, "L12H1": 0.2, "L20H8": 2.0})
    batch, found = pair.tuned.encode(rows), []
    assert scale.path(pair.tuned) == "attention mask"
    for implementation in ("sdpa", "eager"):
        pair.tuned.inner.set_attn_implementation(implementation)
        with iv.Recipe([scale]).applied(pair.tuned):
            found.append(pair.tuned.forward(batch, logits="last"))
    pair.tuned.inner.set_attn_implementation("sdpa")
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=1e-3)


@pytest.mark.slow
def test_the_base_with_its_own_change_added_refuses_in_one_batch(
    refusal: tuple[ModelPair, organisms.Organism],
) -> None:
    """base + (tuned - base) writes the tuned model's texts, and one and a half of it refuses no less."""
    pair, organism = refusal
    rows = Prompts.of(organism.splits["held_out"]).filter(lambda row: row.label == "animal")[::16]
    wanted = pair.tuned.generate(rows, max_new_tokens=TOKENS)
    texts = {}
    for alpha in (1.0, 1.5):
        with iv.Recipe([iv.LogitShift(pair.tuned, pair.base, alpha)]).applied(pair.base):
            texts[alpha] = pair.base.generate(rows, max_new_tokens=TOKENS)
    refused = {alpha: sum(one.startswith(organism.truth.wordings) for one in own) for alpha, own in texts.items()}
    assert texts[1.0] == wanted and refused[1.5] >= refused[1.0] >= len(rows) // 2
