"""A model is told by its content: what is equal hashes equal, what differs in one number does not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.tiny import FAMILIES, tiny_model, tokenizer
from tests.workbench.models.conftest import SaveAdapter, edit_json
from workbench.errors import NotSupported
from workbench.models.adapters import attach_adapter, set_adapter_enabled
from workbench.models.identity import ModelIdentity, adapter_hash, identify, tokenizer_hash, weights_hash
from workbench.models.loading import load_model
from workbench.models.sources import describe


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_and_loaded_model_agree(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    assert weights_hash(model) == weights_hash(tmp_path) == weights_hash(load_model(describe(tmp_path)))


def test_half_precision_and_shards_make_no_difference_to_the_folder(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "many") == weights_hash(model)
    assert weights_hash(load_model(describe(tmp_path / "one"), dtype="float32")) != weights_hash(model)


def test_one_changed_number_changes_the_hash() -> None:
    model = tiny_model("llama")
    before = weights_hash(model)
    assert weights_hash(tiny_model("llama")) == before
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert weights_hash(model) != before


def test_the_hash_of_the_base_survives_an_adapter_on_or_off(save_adapter: SaveAdapter) -> None:
    base = tiny_model("llama")
    before = weights_hash(base)
    model = attach_adapter(base, describe(save_adapter()))
    assert weights_hash(model) == before
    set_adapter_enabled(model, False)
    assert weights_hash(model) == before


def test_adapter_folder_and_loaded_adapter_agree(save_adapter: SaveAdapter) -> None:
    adapter = save_adapter()
    model = attach_adapter(tiny_model("llama"), describe(adapter))
    assert adapter_hash(model) == adapter_hash(adapter)
    model.load_adapter(str(adapter), "again")
    assert adapter_hash(model, "again") == adapter_hash(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="elsewhere", peft_version="0.0")
    assert adapter_hash(model) == adapter_hash(adapter), "where it was made is incidental"
    edit_json(adapter / "adapter_config.json", lora_alpha=99)
    assert adapter_hash(model) != adapter_hash(adapter), "its scaling is not"


def test_two_adapters_of_one_repository_never_collide(save_adapter: SaveAdapter) -> None:
    identities = []
    for seed, name in enumerate(("repo/one", "repo/two")):
        torch.manual_seed(seed)
        model = attach_adapter(tiny_model("llama"), describe(save_adapter(name)))
        identities.append(identify(model, tokenizer(), name="repo"))
    one, two = identities
    assert one.weights == two.weights and one.adapter != two.adapter and one.hash != two.hash
    bare = identify(tiny_model("llama"), tokenizer(), name="repo")
    assert len({one.hash, two.hash, bare.hash}) == 3
    assert identify(model, tokenizer(), adapter=False).hash == bare.hash


def test_the_hash_is_of_content_not_of_names() -> None:
    identity = ModelIdentity("a", "main", "w", None, "t", "float32")
    assert replace(identity, name="b", revision="other").hash == identity.hash
    for change in ({"weights": "v"}, {"adapter": "x"}, {"tokenizer": None}, {"dtype": "bfloat16"}):
        assert replace(identity, **change).hash != identity.hash  # type: ignore[arg-type]
    assert identity.to_dict()["hash"] == identity.hash


def test_tokenizer_hash_ignores_padding_and_sees_tokens_and_template() -> None:
    one: Any = copy.deepcopy(tokenizer())
    before = tokenizer_hash(one)
    one.padding_side = "left"
    one(["a", "a b c"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(one) == before
    other: Any = copy.deepcopy(tokenizer())
    other.add_tokens(["<tool>"])
    assert tokenizer_hash(other) != before
    one.chat_template = "{{ messages }}"
    assert tokenizer_hash(one) != before


def test_offloaded_weights_are_hashed_from_the_folder(base_folder: Path, tmp_path: Path) -> None:
    parts = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")
    spread = {"lm_head": "disk", **{f"model.{part}": "cpu" for part in parts}}
    model = load_model(describe(base_folder), device_map=spread, offload_folder=tmp_path / "offload")
    with pytest.raises(NotSupported, match=r"1 weights are offloaded \(lm_head\.weight\)"):
        weights_hash(model)
    assert identify(model, folder=base_folder).hash == identify(tiny_model("llama")).hash


def test_modules_to_save_belong_to_the_adapter_not_to_the_base() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(tiny_model("llama"), config)
    base, before = weights_hash(model), adapter_hash(model)
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight[0, 0] += 1
    assert weights_hash(model) == base == weights_hash(tiny_model("llama"))
    assert adapter_hash(model) != before
