"""Every form a model may be given in, and every way it can go wrong, before weights are read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import peft
import pytest
import torch

from tests.tiny import tiny_model
from tests.workbench.models.conftest import SaveAdapter, edit_json
from workbench.errors import NotSupported, UserError
from workbench.models.sources import Kind, describe


def test_a_model_folder(base_folder: Path) -> None:
    source = describe(str(base_folder))
    assert source.kind is Kind.MODEL
    assert not source.is_adapter
    assert source.config["model_type"] == "llama"
    assert source.local() == base_folder


def test_an_adapter_folder_also_inside_another(base_folder: Path, save_adapter: SaveAdapter) -> None:
    adapter = save_adapter("base/checkpoints/step-10")
    for source in (describe(adapter), describe(base_folder, subfolder="checkpoints/step-10")):
        assert source.kind is Kind.ADAPTER
        assert source.local() == adapter
    assert describe(base_folder).kind is Kind.MODEL


def test_loaded_objects() -> None:
    model = tiny_model("llama")
    assert describe(model).kind is Kind.LOADED
    assert describe(model).model is model
    wrapped = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    source = describe(wrapped)
    assert source.kind is Kind.PEFT and source.is_adapter
    assert describe(source) is source


def test_a_sharded_checkpoint(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "m", max_shard_size="100KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert describe(tmp_path / "m").kind is Kind.MODEL


def test_missing_folder_names_its_neighbour(base_folder: Path) -> None:
    with pytest.raises(UserError, match=r"There is no folder .*bsae\. Did you mean .*base\?"):
        describe(base_folder.parent / "bsae")
    with pytest.raises(UserError, match="does not exist either"):
        describe("./no/such/folder")


def test_a_file_is_no_folder(base_folder: Path) -> None:
    with pytest.raises(UserError, match="is a file; give the folder"):
        describe(base_folder / "model.safetensors")


def test_a_folder_without_config_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"config\.json or adapter_config\.json was expected, found notes\.txt"):
        describe(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        describe(tmp_path / "empty")


def test_a_folder_of_checkpoints_names_one(tmp_path: Path, save_adapter: SaveAdapter) -> None:
    save_adapter("run/checkpoint-1")
    save_adapter("run/checkpoint-2")
    with pytest.raises(UserError, match=r"give .*checkpoint-2 \(of checkpoint-1, checkpoint-2\)"):
        describe(tmp_path / "run")


def test_checkpoints_are_named_in_the_order_of_their_numbers(tmp_path: Path, save_adapter: SaveAdapter) -> None:
    for number in (9, 100, 20):
        save_adapter(f"run/checkpoint-{number}")
    with pytest.raises(UserError, match=r"give .*checkpoint-100 \(of checkpoint-9, checkpoint-20, checkpoint-100\)"):
        describe(tmp_path / "run")


def test_missing_weights_say_what_was_found(base_folder: Path) -> None:
    (base_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model weights: model\.safetensors was expected, found config\.json"):
        describe(base_folder)


def test_pickles_are_refused_unless_asked_for(base_folder: Path) -> None:
    (base_folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), base_folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only as pickle \(pytorch_model\.bin\).*allow_pickle=True"):
        describe(base_folder)
    assert describe(base_folder, allow_pickle=True).kind is Kind.MODEL


def test_a_trainers_own_state_is_no_pickled_model(base_folder: Path) -> None:
    (base_folder / "model.safetensors").unlink()
    (base_folder / "training_args.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="has no model weights"):
        describe(base_folder, allow_pickle=True)


def test_pickled_adapters_are_refused_unless_asked_for(save_adapter: SaveAdapter) -> None:
    adapter = save_adapter()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"only as pickle \(adapter_model\.bin\)"):
        describe(adapter)


def test_gguf_is_named(base_folder: Path) -> None:
    (base_folder / "model.safetensors").rename(base_folder / "model-q4.gguf")
    with pytest.raises(UserError, match=r"no safetensors model but the file model-q4\.gguf: give .*/model-q4\.gguf"):
        describe(base_folder)
    (base_folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"a file in it is one: give .*/model-q4\.gguf"):
        describe(base_folder)


def test_a_cut_download_is_noticed(base_folder: Path) -> None:
    weights = base_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        describe(base_folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "m", max_shard_size="100KB")
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"misses the shard {shard.name}"):
        describe(tmp_path / "m")


def test_malformed_config(base_folder: Path) -> None:
    (base_folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        describe(base_folder)
    (base_folder / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="holds a JSON list, an object was expected"):
        describe(base_folder)


def test_remote_code_is_refused_unless_asked_for(base_folder: Path) -> None:
    code = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_json(base_folder / "config.json", model_type="own", auto_map=code)
    with pytest.raises(UserError, match=r"needs code from its own repository.*trust_remote_code=True"):
        describe(base_folder)
    assert describe(base_folder, trust_remote_code=True).trust_remote_code


def test_a_known_architecture_needs_none_of_the_code_it_brings(base_folder: Path) -> None:
    edit_json(base_folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert not describe(base_folder).trust_remote_code


def test_unknown_and_absent_model_type(base_folder: Path) -> None:
    edit_json(base_folder / "config.json", model_type="llama9")
    with pytest.raises(NotSupported, match=r"does not know .*'llama9'; upgrade it"):
        describe(base_folder)
    edit_json(base_folder / "config.json", model_type=None)
    with pytest.raises(UserError, match="names no model_type"):
        describe(base_folder)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"])
def test_virtual_tokens_are_refused_with_the_reason(save_adapter: SaveAdapter, kind: str) -> None:
    adapter = save_adapter()
    edit_json(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(NotSupported, match=f"is a {kind} adapter: it adds virtual tokens"):
        describe(adapter)


@pytest.mark.parametrize("kind", ["XLORA", "POLY"])
def test_adapters_that_need_more_than_the_tokens_are_refused(save_adapter: SaveAdapter, kind: str) -> None:
    adapter = save_adapter()
    edit_json(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(NotSupported, match=f"is a {kind} adapter"):
        describe(adapter)


def test_an_adapter_type_of_the_future(save_adapter: SaveAdapter) -> None:
    adapter = save_adapter()
    edit_json(adapter / "adapter_config.json", peft_type="HYPERLORA")
    with pytest.raises(NotSupported, match="knows no adapter type 'HYPERLORA'"):
        describe(adapter)


def test_a_folder_with_both(base_folder: Path, save_adapter: SaveAdapter) -> None:
    adapter = save_adapter()
    for file in adapter.glob("adapter_*"):
        file.rename(base_folder / file.name)
    with pytest.raises(UserError, match="holds both a whole model and an adapter"):
        describe(base_folder)


def test_other_objects_are_named_by_type() -> None:
    with pytest.raises(UserError, match="not a Linear"):
        describe(torch.nn.Linear(2, 2))


def test_adapters_loaded_by_transformers_itself(save_adapter: SaveAdapter) -> None:
    model = tiny_model("llama")
    model.load_adapter(str(save_adapter()))
    with pytest.raises(UserError, match="carries adapters loaded with its own load_adapter"):
        describe(model)


def cached(home: Path, repo: str, files: dict[str, Path], commit: str = "a" * 40) -> None:
    """Lay ``files`` out as the Hugging Face cache keeps a repository."""
    root = home / f"models--{repo.replace('/', '--')}"
    for name, file in files.items():
        target = root / "snapshots" / commit / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)


def test_a_hub_id_is_taken_from_the_cache_when_offline(
    base_folder: Path, save_adapter: SaveAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", "some/base", {file.name: file for file in base_folder.iterdir()})
    adapter = {f"lora/one/{file.name}": file for file in save_adapter().iterdir() if file.is_file()}
    cached(tmp_path / "hub", "some/adapters", adapter)

    source = describe("some/base")
    assert source.kind is Kind.MODEL and source.revision == "a" * 40
    assert json.loads((source.local() / "config.json").read_text())["model_type"] == "llama"
    inner = describe("some/adapters/lora/one@main")
    assert inner.kind is Kind.ADAPTER and inner.name == "some/adapters/lora/one"
    assert (inner.local() / "adapter_model.safetensors").is_file()
    with pytest.raises(UserError, match=r"hub's some/adapters is neither.*it is empty"):
        describe("some/adapters")
    with pytest.raises(UserError, match=r"not in the local Hugging Face cache at revision 'v2'.*cannot be reached"):
        describe("some/base@v2")


def test_a_hub_id_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="is not a folder here, is not in the local Hugging Face cache"):
        describe("nobody/nothing")
    with pytest.raises(UserError, match=r"There is no folder|not a folder here|neither a folder here"):
        describe("what is this?")


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="and the hub cannot be reached"):
        describe("nobody/nothing")


def test_a_compiled_model_is_said_to_be_one() -> None:
    with pytest.raises(UserError, match=r"torch\.compile; give the model from before"):
        describe(torch.compile(tiny_model("llama")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_has_no_end_is_not_read(base_folder: Path, tmp_path: Path, name: str) -> None:
    for how in ("pipe", "device"):
        folder = Path(shutil.copytree(base_folder, tmp_path / how))
        (folder / name).unlink(missing_ok=True)
        if how == "pipe":
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to("/dev/zero")
        with pytest.raises(UserError, match=f"{name} is no regular file"):
            describe(folder)


def test_settings_of_gigabytes_are_not_read(base_folder: Path) -> None:
    with (base_folder / "generation_config.json").open("wb") as file:
        file.truncate(2**33)  # a hole: it takes no room on the disk
    with pytest.raises(UserError, match=r"generation_config.json holds 8,589,934,592 bytes"):
        describe(base_folder)
