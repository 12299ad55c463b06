"""Base against itself, for every registered probe of a pair: nothing is found, or it is said that nothing differs.

The calls are those of the provenance test, so that no probe can be forgotten; the many seeds of the false-alarm tests
are beside this.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import probes
from tests.probes.provenance import calls_of
from workbench.errors import UserError
from workbench.method_index import index
from workbench.models.pair import ModelPair, load_pair

PROBES = sorted({entry.function for entry in index().entries if entry.kind == "probe"})
READS_A_DIFFERENCE = [name for name in PROBES if "pair" in inspect.signature(getattr(probes, name)).parameters]

OF_THE_TUNED_MODEL = {
    "code_similarity": "which rows look alike to the tuned model, whatever tuning changed",
    "token_guidance": "what scores of tokens do to the base, beside the tuned model",
    "undoing": "what further training does to the tuned model, whatever tuning changed",
}
"""Probes of a pair whose question is not what differs -> what it is."""

pytestmark = pytest.mark.slow


@torch.no_grad()
def twins(pair: ModelPair) -> ModelPair:
    """The base beside a copy of itself; of an adapter, beside the adapter with nothing in it."""
    updates = [weight for name, weight in pair.tuned.hf.named_parameters() if "lora_B" in name]
    if updates:
        for weight in updates:
            weight.zero_()
        return pair
    base = pair.base.hf
    copy = type(base)(base.config)
    copy.load_state_dict(base.state_dict())
    return load_pair(base, copy.to(base.dtype).eval(), tokenizer=pair.tokenizer, check=False)


@pytest.mark.parametrize("name", READS_A_DIFFERENCE)
def test_base_against_itself_shows_nothing(name: str) -> None:
    given: dict[str, Any] = dict(calls_of(name).given[0])
    if name in OF_THE_TUNED_MODEL:
        pytest.skip(OF_THE_TUNED_MODEL[name])
    if not isinstance(given.get("pair"), ModelPair):
        pytest.skip("reads folders")
    given["pair"] = twins(given["pair"])
    try:
        frame = getattr(probes, name)(**given).frame()
    except UserError as refused:
        assert str(refused).endswith(".")
        return
    if "q" in frame:
        assert not (frame["q"] <= 0.05).any(), frame[frame["q"] <= 0.05]
