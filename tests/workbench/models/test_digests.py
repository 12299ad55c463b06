"""Digests of a checkpoint made while it is read: the same as of the tensors themselves, each read and held once."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_model
from workbench.models import digests
from workbench.models.digests import FolderDigests, digest, digest_stored
from workbench.models.identity import weights_hash
from workbench.models.sources import describe
from workbench.models.stored_model import StoredModel


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "matrix": torch.randn(37, 11), "half": torch.randn(9, 4, 5).bfloat16(), "vector": torch.randn(50),
        "number": torch.tensor(3.0), "empty": torch.zeros(0, 3), "flags": torch.tensor([True, False]),
    }  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_a_stored_tensor_has_the_digest_of_the_tensor_whatever_the_pieces(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    largest = 0

    def held(started: Any, tensor: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, tensor.numel())
        plainly(started, tensor)

    plainly = digests._add
    wanted = {name: (digest(tensor), tensor.dtype) for name, tensor in tensors.items()}
    monkeypatch.setattr(digests, "_CHUNK", chunk)
    monkeypatch.setattr(digests, "_add", held)
    stored = FolderDigests(save(tmp_path, tensors)).tensors
    assert {name: digest_stored(one) for name, one in stored.items()} == wanted
    assert largest == {1: 20, 40: 40, 1 << 20: 37 * 11}[chunk], "at least one row, at most a chunk"


def test_what_was_read_is_hashed_as_read_and_the_rest_at_the_end(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FolderDigests(save(tmp_path, tensors))
    for name in ("matrix", "half", "matrix"):
        assert torch.equal(folder.read(name), tensors[name])
    left: list[str] = []
    monkeypatch.setattr(digests, "digest_stored", lambda one: left.append(one.name) or digest_stored(one))
    assert dict(folder.all()) == {name: digest(tensor) for name, tensor in tensors.items()}
    assert sorted(left) == ["empty", "flags", "number", "vector"] and folder.dtype == torch.float32
    assert dict(folder.all()) and len(left) == 4, "nothing is read twice"


def test_a_tensor_is_let_go_of_before_the_next_is_read(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = FolderDigests(save(tmp_path, tensors))
    before = weakref.ref(folder.read("matrix"))
    folder.read("half")
    gc.collect()
    assert before() is None


def test_names_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    wanted, weights = weights_hash(tmp_path), load_file(tmp_path / "model.safetensors")
    assert wanted == weights_hash(model)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    twice = {**bare, "lm_head.weight": bare["wte.weight"].clone(), "h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    stored = StoredModel(describe(save(tmp_path, twice)))
    assert dict(stored.saved_digests()) == {name: digest(tensor) for name, tensor in weights.items()}
    assert stored.plan.unused == ("h.0.attn.bias",)
    assert weights_hash(tmp_path) == wanted
    save(tmp_path, {**twice, "h.0.ln_1.weight": bare["h.0.ln_1.weight"] + 1e-6})
    assert weights_hash(tmp_path) != wanted


def test_a_checkpoint_that_makes_no_model_goes_by_its_own_names(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    found = dict(StoredModel(describe(save(tmp_path, tensors))).saved_digests())
    assert found == {name: digest(tensor) for name, tensor in tensors.items()}
    tiny_model("llama").save_pretrained(tmp_path / "lacking")
    weights = load_file(tmp_path / "lacking" / "model.safetensors")
    lacking = {name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}
    found = dict(StoredModel(describe(save(tmp_path / "lacking", lacking))).saved_digests())
    assert found == {name: digest(tensor) for name, tensor in lacking.items()}
