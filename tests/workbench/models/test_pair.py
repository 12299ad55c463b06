"""load_pair from end to end: every form a pair may be given in, what it shares, what it refuses, how its views nest."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from tests.workbench.models.conftest import SaveAdapter
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import ModelBusy, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_one, load_pair

IDS = token_batch()


def logits(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(IDS).logits


def lora(family: str = "llama", seed: int = 3, **options: Any) -> Any:
    """A PeftModel on a tiny base, its adapter random."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    return peft.get_peft_model(tiny_model(family), config).eval()


@pytest.fixture
def adapter_pair(base_folder: Path, save_adapter: SaveAdapter) -> ModelPair:
    return load_pair(base_folder, save_adapter())


def test_two_folders_hold_two_models(base_folder: Path, tmp_path: Path) -> None:
    tuned = tuned_copy(tiny_model("llama"))
    tuned.save_pretrained(tmp_path / "tuned")
    pair = load_pair(str(base_folder), tmp_path / "tuned")
    assert not pair.one_copy and pair.adapter is None
    assert torch.equal(pair.base.forward(IDS), logits(tiny_model("llama")))
    assert torch.equal(pair.tuned.forward(IDS), logits(tuned))
    assert pair.base.identity.hash != pair.tuned.identity.hash
    assert any("brings no tokenizer" in sentence for sentence in pair.differences.sentences())
    assert "two copies of the weights" in repr(pair) and pair.models == {"base": pair.base, "tuned": pair.tuned}


@pytest.mark.parametrize("name", ["adapter", "base/run/checkpoint-5"])
def test_an_adapter_folder_shares_its_base(base_folder: Path, save_adapter: SaveAdapter, name: str) -> None:
    folder = save_adapter(name)
    pair = load_pair(base_folder, folder)
    bare = logits(tiny_model("llama"))
    assert pair.one_copy and pair.base.inner is pair.tuned.inner
    assert torch.equal(pair.base.forward(IDS), bare)
    merged = peft.PeftModel.from_pretrained(tiny_model("llama"), str(folder)).merge_and_unload().eval()
    torch.testing.assert_close(pair.tuned.forward(IDS), logits(merged), atol=2e-5, rtol=1e-5)
    assert not torch.allclose(pair.tuned.forward(IDS), bare)
    assert pair.base.identity.hash == load_one(base_folder).identity.hash
    assert pair.base.identity.adapter is None and pair.tuned.identity.adapter is not None
    assert "one copy of the weights" in repr(pair)


def test_an_adapter_without_weights_is_a_sentence(base_folder: Path, save_adapter: SaveAdapter) -> None:
    with pytest.raises(UserError, match=r"device='meta' .* load this pair on a device"):
        load_pair(base_folder, save_adapter(), device="meta")


def test_two_adapters_in_one_folder_tree_never_collide(base_folder: Path, save_adapter: SaveAdapter) -> None:
    hashes = set()
    for seed, name in enumerate(("repo/step-1", "repo/step-2")):
        torch.manual_seed(seed)
        hashes.add(load_pair(base_folder, save_adapter(name)).tuned.identity.hash)
    assert len(hashes | {load_one(base_folder).identity.hash}) == 3


def test_loaded_objects_are_taken_as_they_are() -> None:
    base, tuned = tiny_model("qwen2"), tuned_copy(tiny_model("qwen2"))
    pair = load_pair(base, tuned, tokenizer=tokenizer())
    assert pair.base.hf is base and pair.tuned.hf is tuned and not pair.one_copy
    assert torch.equal(pair.base.forward(IDS), logits(base)) and torch.equal(pair.tuned.forward(IDS), logits(tuned))


def test_a_peft_model_on_the_very_base_shares_it() -> None:
    model = lora()
    pair = load_pair(model.get_base_model(), model, tokenizer=tokenizer())
    assert pair.one_copy and pair.tuned.hf is model
    assert torch.equal(pair.base.forward(IDS), logits(tiny_model("llama")))
    assert torch.equal(pair.tuned.forward(IDS), logits(model))


def test_a_peft_model_with_its_base_from_a_folder_shares_it_too(base_folder: Path) -> None:
    pair = load_pair(base_folder, lora())
    assert pair.one_copy
    assert torch.equal(pair.base.forward(IDS), logits(tiny_model("llama")))


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_pissa_takes_two_copies_and_says_why(base_folder: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(str(tmp_path / "pissa"))
    pair = load_pair(base_folder, tmp_path / "pissa")
    assert not pair.one_copy and pair.base.inner is not pair.tuned.inner
    assert torch.equal(pair.base.forward(IDS), logits(tiny_model("llama")))
    said = " ".join(pair.differences.sentences())
    assert "Two copies of the weights are held" in said and "pissa" in said and "rewrites 3 of" in said
    base = tiny_model("llama")
    with pytest.raises(UserError, match="give the base as a folder"):
        load_pair(base, tmp_path / "pissa", tokenizer=tokenizer())
    assert not hasattr(base, "peft_config")


def test_a_model_against_itself_is_one_object_and_no_difference() -> None:
    base = tiny_model("gpt2")
    pair = load_pair(base, base, tokenizer=tokenizer())
    assert pair.one_copy and not pair.differences.sentences()
    assert torch.equal(pair.base.forward(IDS), pair.tuned.forward(IDS))
    assert pair.base.identity.hash == pair.tuned.identity.hash


def test_pairs_that_do_not_compare_are_refused_by_field(base_folder: Path, save_adapter: SaveAdapter) -> None:
    base = tiny_model("llama")
    for tuned, says in (
        (tiny_model("qwen3"), "different architectures: model_type is 'llama' in the base and 'qwen3'"),
        (tiny_model("llama", hidden_size=32), "different shapes: hidden_size is 64 in the base and 32"),
        (tiny_model("llama", num_hidden_layers=2), "num_hidden_layers is 3 in the base and 2"),
    ):
        with pytest.raises(UserError, match=says):
            load_pair(base, tuned, tokenizer=tokenizer())
    adapter = save_adapter()
    with pytest.raises(UserError, match="is an adapter: give the model it was trained on as the base"):
        load_pair(adapter, base_folder)
    with pytest.raises(UserError, match="load it with its base"):
        load_one(adapter)


def test_tokenizers_that_number_the_same_token_differently_are_refused(base_folder: Path, tmp_path: Path) -> None:
    tuned_copy(tiny_model("llama")).save_pretrained(tmp_path / "tuned")
    for path in base_folder.glob("tokenizer*"):
        (tmp_path / "tuned" / path.name).write_text(path.read_text())
    content = json.loads((base_folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "tuned" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"The tokenizers differ: 2 tokens have another id .*\('a'"):
        load_pair(base_folder, tmp_path / "tuned")


def test_views_of_one_copy_nest_and_come_back(adapter_pair: ModelPair) -> None:
    base, tuned = adapter_pair.base.forward(IDS), adapter_pair.tuned.forward(IDS)
    with adapter_pair.tuned.active() as hf:
        assert torch.equal(logits(hf), tuned)
        assert torch.equal(adapter_pair.base.forward(IDS), base)
        assert torch.equal(logits(hf), tuned)
        with adapter_pair.base.active():
            assert torch.equal(logits(hf), base)
            assert torch.equal(adapter_pair.tuned.forward(IDS), tuned)
            with pytest.raises(ZeroDivisionError), adapter_pair.tuned.active():
                raise ZeroDivisionError
            assert torch.equal(logits(hf), base)
        assert torch.equal(logits(hf), tuned)
    assert torch.equal(logits(adapter_pair.adapter), tuned)  # outside a context it runs as the tuned model


def test_hooks_of_one_view_do_not_fire_in_the_other(adapter_pair: ModelPair) -> None:
    base, tuned = adapter_pair.base, adapter_pair.tuned
    plain = {role: model.forward(IDS) for role, model in adapter_pair.models.items()}
    seen: list[torch.Tensor] = []

    def shift(value: torch.Tensor, _ctx: Any) -> torch.Tensor:
        seen.append(value)
        return value + 1.0

    with tuned.hooked([SiteHook(Site("resid_post", 1), shift, edit=True)]):
        assert torch.equal(base.forward(IDS), plain["base"]) and not seen
        steered = tuned.forward(IDS)
        with base.hooked([SiteHook(Site("resid_post", 1), shift, edit=True)]):
            both = base.forward(IDS)
            assert len(seen) == 2 and torch.equal(tuned.forward(IDS), steered)
    assert not torch.allclose(steered, plain["tuned"]) and not torch.allclose(both, plain["base"])
    assert base.n_hooks == tuned.n_hooks == 0
    assert torch.equal(tuned.forward(IDS), plain["tuned"])


def test_another_thread_is_told_that_the_model_is_busy(adapter_pair: ModelPair) -> None:
    caught: list[BaseException] = []

    def use() -> None:
        try:
            adapter_pair.base.forward(IDS)
        except ModelBusy as error:
            caught.append(error)

    def run() -> None:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

    with adapter_pair.tuned.active():
        run()
    assert len(caught) == 1 and "Another thread is using this model" in str(caught[0])
    run()
    assert len(caught) == 1, "the model is free again"


def test_a_model_spread_over_cpu_and_disk_gives_the_same_activations(base_folder: Path, tmp_path: Path) -> None:
    parts = ("embed_tokens", "layers.0", "layers.2", "norm", "rotary_emb")
    spread = {"lm_head": "cpu", "model.layers.1": "disk", **{f"model.{part}": "cpu" for part in parts}}
    tuned_copy(tiny_model("llama")).save_pretrained(tmp_path / "tuned", max_shard_size="100KB")
    plain = load_pair(base_folder, tmp_path / "tuned")
    pair = load_pair(base_folder, tmp_path / "tuned", device_map=spread)
    assert any(p.device.type == "meta" for p in pair.tuned.inner.model.layers[1].parameters())
    sites = plain.tuned.expand(["resid_pre", "z", "mlp_out", "resid_post"])

    def recorded(models: ModelPair, stop: bool) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        def keep(role: str, site: Site) -> SiteHook:
            return SiteHook(site, lambda value, _ctx: found.__setitem__(f"{role}/{site.name}", value.cpu()))

        for role, model in models.models.items():
            with model.hooked([keep(role, site) for site in sites], stop=stop):
                model.forward(IDS, logits=None if stop else "all")
            assert model.n_hooks == 0
        return found

    want = recorded(plain, stop=False)
    for stop in (False, True):
        got = recorded(pair, stop=stop)
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert torch.equal(pair.tuned.forward(IDS), plain.tuned.forward(IDS))
    assert pair.base.identity.hash == plain.base.identity.hash


def test_an_adapter_on_an_offloaded_base_has_the_identity_of_one_in_memory(adapter_pair: ModelPair) -> None:
    """Weights that are not in memory are hashed in the base's folder, also for the tuned side."""
    parts = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")
    spread = {"lm_head": "cpu", **{f"model.{part}": "cpu" for part in parts}, "model.layers.1": "disk"}
    pair = load_pair(adapter_pair.base.name, adapter_pair.tuned.name, device_map=spread)
    assert pair.base.inner.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    for role, model in pair.models.items():
        assert model.identity.hash == adapter_pair.models[role].identity.hash


def test_loaded_models_without_a_tokenizer_read_token_ids_alone() -> None:
    base = tiny_model("llama")
    pair = load_pair(base, tuned_copy(base))
    assert "No tokenizer came with the models" in pair.differences.sentences()[0]
    assert torch.equal(pair.tuned.encode([{"input_ids": [4, 5]}]).input_ids, torch.tensor([[4, 5]]))
    for given in (["a text"], [{"messages": [{"role": "user", "content": "hi"}]}]):
        with pytest.raises(UserError, match=r"came without a tokenizer: load them with tokenizer="):
            pair.tuned.generate(given)


def test_a_forward_pass_takes_prompts_as_they_are() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny")
    rows = ["the quick brown fox", "jumps"]
    assert torch.equal(model.forward(rows), model.forward(model.encode(rows)))
