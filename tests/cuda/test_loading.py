"""Pairs on the device: folders, dtypes, adapters on one copy of the weights, models spread over devices."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import interventions as iv
from tests.cuda.place import DEVICE, HERE, close
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.recording.record_pair import record

IDS = token_batch()
WORDS = ["the quick brown", "fox jumps", "over the lazy dog"]
SPREAD = {
    "model.embed_tokens": HERE, "model.rotary_emb": HERE, "model.layers.0": HERE, "model.layers.1": "cpu",
    "model.layers.2": HERE, "model.norm": HERE, "lm_head": HERE,
}  # fmt: skip
LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**LORA)).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_two_folders(home: Path, dtype: str) -> None:
    pair = load_pair(home / "llama-base", home / "llama-tuned", device=str(DEVICE), dtype=dtype)
    for model in pair.models.values():
        assert model.device.type == DEVICE.type and model.dtype == getattr(torch, dtype)
        assert {parameter.device.type for parameter in model.hf.parameters()} == {DEVICE.type}
    with torch.no_grad():
        wanted = pair.tuned.hf(IDS.to(pair.tuned.device)).logits
    assert torch.equal(pair.tuned.forward(IDS), wanted)
    own = load_pair(home / "llama-base", home / "llama-tuned", device="cpu")
    loose = {"float32": 3e-4, "bfloat16": 1.0, "float16": 0.2}[dtype]
    close(pair.tuned.forward(IDS).float(), own.tuned.forward(IDS), atol=loose, rtol=0.05)
    if dtype == "float32":
        assert pair.tuned.identity.hash == own.tuned.identity.hash


def test_auto_takes_the_device(home: Path) -> None:
    if DEVICE.type == "cuda":
        pair = load_pair(home / "llama-base", home / "llama-tuned")
        assert pair.base.device.type == pair.tuned.device.type == "cuda"


def test_an_adapter_folder_shares_one_copy(home: Path, adapter: Path) -> None:
    pair = load_pair(home / "llama-base", adapter, device=str(DEVICE))
    own = load_pair(home / "llama-base", adapter, device="cpu")
    assert pair.one_copy and pair.base.inner is pair.tuned.inner
    assert {parameter.device.type for parameter in pair.tuned.hf.parameters()} == {DEVICE.type}
    for role in ("base", "tuned"):
        close(pair.models[role].forward(IDS), own.models[role].forward(IDS))
        assert pair.models[role].identity.hash == own.models[role].identity.hash
    if DEVICE.type == "cuda":
        weights = sum(parameter.numel() * parameter.element_size() for parameter in pair.tuned.hf.parameters())
        del pair
        gc.collect()
        before = torch.cuda.memory_allocated()
        again = load_pair(home / "llama-base", adapter, device=str(DEVICE))
        assert torch.cuda.memory_allocated() - before < 1.5 * weights and again.one_copy


def test_a_loaded_adapter_shares_one_copy() -> None:
    hf = tiny_model("llama").to(DEVICE)
    bare = hf(IDS.to(DEVICE)).logits.detach()
    pair = load_pair(hf, peft.get_peft_model(hf, peft.LoraConfig(**LORA)).eval(), tokenizer=tokenizer(), check=False)
    assert pair.one_copy and torch.equal(pair.base.forward(IDS), bare)
    assert not torch.allclose(pair.tuned.forward(IDS), bare)
    assert pair.base.n_hooks == 0


def works(pair: Any, own: Any) -> None:
    """Recording, steering and generation say what they say on the CPU."""
    rec, wanted = (record(one, Prompts.of(WORDS), ["z", "resid_post"], batch_size=2) for one in (pair, own))
    for role in rec.roles:
        for site in rec.sites:
            close(rec[role][site], wanted[role][site])
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 3
    for layer in range(3):
        recipe = iv.Recipe([iv.Offset(layer, vector), iv.HeadOffset({(layer, 1): vector[:16]})])
        with recipe.applied(pair.tuned), recipe.applied(own.tuned):
            close(pair.tuned.forward(IDS), own.tuned.forward(IDS), atol=2e-3)
            assert pair.tuned.generate(WORDS, max_new_tokens=4) == own.tuned.generate(WORDS, max_new_tokens=4)
    assert pair.tuned.n_hooks == 0


@pytest.mark.parametrize("spread", ["auto", SPREAD], ids=["auto", "over-two"])
def test_a_device_map(home: Path, spread: Any) -> None:
    pair = load_pair(home / "llama-base", home / "llama-tuned", device_map=copy.deepcopy(spread))
    own = load_pair(home / "llama-base", home / "llama-tuned", device="cpu")
    assert spread == "auto" or DEVICE.type == "cpu" or len(set(pair.tuned.hf.hf_device_map.values())) == 2
    works(pair, own)


def test_an_adapter_on_a_device_map(home: Path, adapter: Path) -> None:
    pair = load_pair(home / "llama-base", adapter, device_map=copy.deepcopy(SPREAD))
    assert pair.one_copy
    works(pair, load_pair(home / "llama-base", adapter, device="cpu"))


def test_base_and_tuned_on_different_devices() -> None:
    base = tiny_model("llama")
    tuned = tuned_copy(base, size=0.1)
    own = load_pair(base, tuned, tokenizer=tokenizer(), check=False)
    pair = load_pair(base, copy.deepcopy(tuned).to(DEVICE), tokenizer=tokenizer(), check=False)
    if DEVICE.type != "cpu":
        assert any("The base lies on" in sentence for sentence in pair.differences.sentences())
    works(pair, own)


def test_a_model_moved_after_loading(home: Path) -> None:
    pair = load_pair(home / "llama-base", home / "llama-tuned", device="cpu")
    wanted = pair.tuned.forward(IDS)
    pair.tuned.hf.to(DEVICE)
    assert pair.tuned.device.type == DEVICE.type
    close(pair.tuned.forward(IDS), wanted)
