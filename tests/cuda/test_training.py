"""Training on the device: the losses of the CPU to begin with, recipes on the CPU, nothing left on the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import interventions as iv
from tests.cuda.place import DEVICE, HERE, close, tensors_of
from tests.tiny import tiny_model, tokenizer
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_one

ROWS = [
    {"prompt": "the quick brown", "answer": "fox", "distractor": "dog"},
    {"prompt": "jumps over the lazy", "answer": "dog", "distractor": "fox"},
] * 4
SHORT = iv.Schedule(epochs=4, learning_rate=3e-2)


def both(family: str = "llama") -> tuple[AdaptedModel, AdaptedModel]:
    return AdaptedModel(tiny_model(family).to(DEVICE), tokenizer()), AdaptedModel(tiny_model(family), tokenizer())


def as_on_the_cpu(found: Any, wanted: Any) -> None:
    for one, other in zip(found.history, wanted.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05, abs=0.02)
    assert found.history[-1]["loss"] < found.history[0]["loss"]


@pytest.mark.parametrize("loss", ["sft", "dpo"])
@pytest.mark.parametrize("family", ["llama", "qwen3moe"])
def test_offsets(family: str, loss: str) -> None:
    model, own = both(family)
    weights = {name: parameter.clone() for name, parameter in model.hf.named_parameters()}
    options: dict[str, Any] = {"schedule": SHORT} if loss == "sft" else {"schedule": SHORT, "loss": "dpo"}
    trained, wanted = (iv.train_offsets(one, ROWS, ["L1H2", "L2H0"], **options) for one in (model, own))
    as_on_the_cpu(trained, wanted)
    assert all(value.device.type == "cpu" for _, value in tensors_of(list(trained.recipe)))
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.hf.named_parameters())
    assert {parameter.device.type for parameter in model.hf.parameters()} == {DEVICE.type} and model.n_hooks == 0
    with trained.recipe.applied(model), trained.recipe.applied(own):
        ids = own.encode(["the quick brown"])
        close(model.forward(ids), own.forward(ids), atol=2e-3)


def test_head_scales() -> None:
    model, own = both()
    found, wanted = (iv.train_head_scales(one, ROWS, penalty=1e-3, schedule=SHORT) for one in (model, own))
    assert all(value.device.type == "cpu" for _, value in tensors_of(found))
    as_on_the_cpu(found, wanted)
    assert model.n_hooks == 0


@pytest.mark.parametrize("ablated", [True, False])
def test_caft(ablated: bool) -> None:
    direction = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    results = []
    for model, place in zip(both(), (DEVICE, "cpu"), strict=True):
        lora = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
        schedule = iv.Schedule(epochs=4, batch_size=4, learning_rate=1e-2)
        results.append(
            iv.caft_finetune(model, ROWS, {1: direction.to(place)} if ablated else None, lora=lora, schedule=schedule)
        )
        assert model.n_hooks == 0
    as_on_the_cpu(*results)
    assert {parameter.device.type for parameter in results[0].model.parameters()} == {DEVICE.type}
    for layer, value in results[1].base_means.items():
        close(results[0].base_means[layer], value)


def test_random_directions_for_caft() -> None:
    model, own = both()
    wide = {1: torch.randn(2, 64, generator=torch.Generator().manual_seed(1))}
    found = iv.random_directions({layer: one.to(DEVICE) for layer, one in wide.items()})
    wanted = iv.random_directions(wide)
    assert all(torch.equal(found[layer].cpu(), wanted[layer]) for layer in wide)
    with iv.ablated_training(model, found), iv.ablated_training(own, wanted):
        ids = own.encode(["the quick brown"])
        close(model.forward(ids), own.forward(ids), atol=2e-3)
    assert model.n_hooks == 0


@pytest.mark.parametrize("family", ["llama"])
def test_a_model_spread_over_two_devices(family: str, home: Path) -> None:
    """The loss arises where the vocabulary projection is, not where the trainer is."""
    split = {"model": HERE, "lm_head": "cpu"}
    model = load_one(home / f"{family}-base", device_map=split)
    own = load_one(home / f"{family}-base", device="cpu")
    as_on_the_cpu(*(iv.train_offsets(one, ROWS, ["L1H2"], schedule=SHORT) for one in (model, own)))
    as_on_the_cpu(*(iv.train_head_scales(one, ROWS, penalty=1e-3, schedule=SHORT) for one in (model, own)))
    assert model.n_hooks == 0
