"""A config is taken to fit the stored weights without a second model only where its sizes are all seen among them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import FAMILIES, tiny_model
from workbench.models.config_fit import fits_plainly


def stored(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def test_a_plain_decoder_fits() -> None:
    for family in ("llama", "qwen3", "olmo2"):
        model = tiny_model(family)
        assert fits_plainly(model.config.to_dict(), stored(model)), family


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"]
)
def test_a_size_that_is_not_stored_does_not(family: str, name: str) -> None:
    model = tiny_model(family)
    assert not fits_plainly({**model.config.to_dict(), name: 10**6}, stored(model))


@pytest.mark.parametrize("other", [{"num_experts": 4}, {"vision_config": {"hidden_size": 8}}, {"lora_width": 10**9}])
def test_sizes_that_nobody_knows_are_left_to_the_model(other: dict[str, Any]) -> None:
    model = tiny_model("llama")
    assert not fits_plainly({**model.config.to_dict(), **other}, stored(model))
