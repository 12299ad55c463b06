"""Adapters whose files and config do not fit each other: what PEFT makes of them, or one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import probes
import workbench as wb
from probes.weights.sources import open_weights
from tests.probes.weights.test_merged_difference import change_read, check, loaded, trained, weights
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.typing import Tensor

pytestmark = pytest.mark.filterwarnings("ignore")
Stored = dict[str, Tensor]
Q = "base_model.model.model.layers.1.self_attn.q_proj"
MADE: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj"]},
    "two": {"target_modules": ["q_proj", "v_proj"]},
    "DoRA": {"target_modules": ["q_proj"], "use_dora": True},
    "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("strangers")
    tiny_model("llama").save_pretrained(home / "base")
    tokenizer().save_pretrained(home / "base")
    for name, options in MADE.items():
        trained(peft.get_peft_model(loaded(home / "base"), peft.LoraConfig(r=4, **options))).save_pretrained(
            home / name
        )
    return home


def without(part: str) -> Callable[[Stored], Stored]:
    return lambda stored: {name: tensor for name, tensor in stored.items() if part not in name}


def with_more(name: str, *shape: int) -> Callable[[Stored], Stored]:
    return lambda stored: {**stored, name: torch.ones(shape)}


def unchanged(stored: Stored) -> Stored:
    return stored


LEFT_OUT: dict[str, tuple[str, Callable[[Stored], Stored], dict[str, Any]]] = {
    "a module that is not targeted": ("two", unchanged, {"target_modules": ["q_proj"]}),
    "a module that is excluded": ("two", unchanged, {"exclude_modules": ["v_proj"]}),
    "layers that are not targeted": ("plain", unchanged, {"layers_to_transform": [0]}),
    "another pattern": ("two", unchanged, {"target_modules": r".*\.[12]\..*\.(q|v)_proj"}),
    "magnitudes without DoRA": ("DoRA", unchanged, {"use_dora": False}),
    "a head without PEFT's prefix": ("plain", with_more("lm_head.weight", 300, 64), {}),
    "a part that no LoRA has": ("plain", with_more(f"{Q}.lora_C.weight", 4), {}),
}  # fmt: skip
REFUSED: dict[str, tuple[str, Callable[[Stored], Stored], dict[str, Any], str]] = {
    "no magnitudes": ("plain", unchanged, {"use_dora": True}, "incomplete"),
    "B of one module": ("plain", without(f"{Q}.lora_B"), {}, "incomplete"),
    "A of one module": ("plain", without(f"{Q}.lora_A"), {}, "incomplete"),
    "a layer": ("plain", without("layers.1."), {}, "incomplete"),
    "everything": ("plain", without("lora"), {}, "incomplete"),
    "another rank": ("plain", unchanged, {"r": 8}, "size mismatch"),
    "another rank by pattern": ("plain", unchanged, {"rank_pattern": {"q_proj": 2}}, "size mismatch"),
    "two ranks": (
        "plain", lambda stored: {name: (t[:, :2] if "lora_B" in name else t) for name, t in stored.items()}, {},
        "size mismatch",
    ),
    "vectors for factors": (
        "plain", lambda stored: {name: (t.flatten() if "layers.1" in name else t) for name, t in stored.items()}, {},
        "size mismatch|does not fit",
    ),
    "a saved head": ("head", without("lm_head"), {}, "files lack 'base_model.model.lm_head.weight'"),
    "biases": ("plain", unchanged, {"lora_bias": True}, "incomplete"),
    "no prefix": (
        "plain", lambda stored: {n.removeprefix("base_model.model."): t for n, t in stored.items()}, {}, "incomplete"
    ),
    "the prefix twice": (
        "plain", lambda stored: {f"base_model.model.{n}": t for n, t in stored.items()}, {}, "does not fit"
    ),
    "tokens beyond the vocabulary": ("plain", unchanged, {"trainable_token_indices": [9999]}, "PEFT cannot put"),
    "an alpha that is no number": ("plain", unchanged, {"lora_alpha": "16"}, "PEFT cannot put"),
}  # fmt: skip
TAKEN: dict[str, tuple[str, Callable[[Stored], Stored], dict[str, Any]]] = {
    "a head that the config does not name": ("head", unchanged, {"modules_to_save": None}),
    "a weight of the base": ("plain", with_more("base_model.model.model.layers.0.mlp.up_proj.weight", 96, 64), {}),
    "half precision": ("plain", lambda stored: {name: t.bfloat16() for name, t in stored.items()}, {}),
    "whole numbers": ("plain", lambda stored: {n: (t * 10).to(torch.int8) for n, t in stored.items()}, {}),
    "a pattern": ("plain", unchanged, {"target_modules": r".*self_attn\.q_proj"}),
    "fan_in_fan_out where there is none": ("plain", unchanged, {"fan_in_fan_out": True}),
}


def edited(source: Path, target: Path, edit: Callable[[Stored], Stored], config: dict[str, Any]) -> Path:
    shutil.copytree(source, target)
    file, settings = target / "adapter_model.safetensors", target / "adapter_config.json"
    tensors = {name: tensor.contiguous().clone() for name, tensor in edit(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **config}))
    return target


def by_peft(home: Path, adapter: Path) -> Stored:
    bare = weights(loaded(home / "base"))
    merged = weights(peft.PeftModel.from_pretrained(loaded(home / "base"), adapter).merge_and_unload())
    return {name: now - bare[name] for name, now in merged.items()}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_tensors_that_peft_leaves_out_are_told_and_not_counted(home: Path, tmp_path: Path, what: str) -> None:
    made, edit, config = LEFT_OUT[what]
    adapter = edited(home / made, tmp_path / "adapter", edit, config)
    pair = wb.load_pair(home / "base", adapter)
    check(change_read(open_weights(pair)), by_peft(home, adapter))
    assert any("not asked for by its adapter_config.json" in said for said in pair.differences.sentences())
    with pytest.raises(UserError, match=r"does not ask for .*load the pair"):
        probes.weight_delta(home / "base", adapter)


@pytest.mark.parametrize("what", REFUSED)
def test_what_peft_cannot_put_on_is_one_sentence(home: Path, tmp_path: Path, what: str) -> None:
    made, edit, config, said = REFUSED[what]
    adapter = edited(home / made, tmp_path / "adapter", edit, config)
    with pytest.raises(UserError, match=said):
        wb.load_pair(home / "base", adapter)
    with pytest.raises(UserError):
        probes.weight_delta(home / "base", adapter)


@pytest.mark.parametrize("what", TAKEN)
def test_odd_ones_that_peft_takes_are_read_as_it_does(home: Path, tmp_path: Path, what: str) -> None:
    made, edit, config = TAKEN[what]
    adapter = edited(home / made, tmp_path / "adapter", edit, config)
    right = by_peft(home, adapter)
    pair = wb.load_pair(home / "base", adapter)
    check(change_read(open_weights(pair)), right)
    check(change_read(open_weights(home / "base", adapter)), right)
    assert not any("not asked for" in said for said in pair.differences.sentences())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers_are_told(home: Path, tmp_path: Path, wrong: float) -> None:
    def broken(stored: Stored) -> Stored:
        stored[f"{Q}.lora_A.weight"][0, 0] = wrong
        return stored

    adapter = edited(home / "plain", tmp_path / "adapter", broken, {})
    for result in (
        probes.weight_delta(home / "base", adapter), probes.weight_delta(wb.load_pair(home / "base", adapter))
    ):  # fmt: skip
        assert "1 weights hold NaN or infinite entries" in result.summary()
        assert result.table["frobenius"].notna().all()
